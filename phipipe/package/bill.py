"""The bill of materials: ``bom.cdx.json``, CycloneDX 1.6 with a model card.

What the manifest says, in the words of a standard that inventories read. The model is the subject,
the original its ancestor, texts are data, and what the toolchains had stands under ``formulation``.
Same build, same bytes: it holds no time, and its serial number follows from its content. Speed is
not in it, so that it is the same wherever the build was measured.

https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from phipipe import metrics
from phipipe.evaluate import papers
from phipipe.evaluate.reports import dump
from phipipe.package.description import Description, Licence, Origin, Source
from phipipe.package.licences import SPDX
from phipipe.package.materials import Hub, Material, materials, parts, purl, toolchains
from phipipe.steps import Json
from phipipe.store.keys import FileEntry

NAME = papers.BILL
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
FORMAT, VERSION = "CycloneDX", "1.6"
MODEL = "model"  # the reference of the package's model inside the bill
# of the normal distribution; 95 % of values are within so many standard errors
CONFIDENCE, STANDARD_ERRORS = 0.95, 1.959964


def text(described: Description, files: Sequence[FileEntry]) -> str:
    """The text of ``bom.cdx.json`` for the package ``described``; ``files`` is what its artifact
    holds, by path."""
    bill = {
        "$schema": SCHEMA,
        "bomFormat": FORMAT,
        "specVersion": VERSION,
        "version": 1,
        "metadata": {
            "tools": {"components": [_phipipe(described)]},
            "component": _model(described, files),
        },
        "components": [_data(one) for one in _texts(described)],
        "formulation": [{"bom-ref": "formula", "components": list(_installed(described))}],
    }
    digest = hashlib.sha256(dump(bill).encode()).hexdigest()
    serial = uuid.uuid5(uuid.NAMESPACE_OID, digest)
    return dump({**bill, "serialNumber": f"urn:uuid:{serial}"})


def _phipipe(described: Description) -> dict[str, Json]:
    return {"type": "application", "name": "phipipe", "version": described.phipipe}


def _model(described: Description, files: Sequence[FileEntry]) -> dict[str, Json]:
    licences = {"licenses": named} if (named := _licences(described.licence)) else {}
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": described.name,
        "description": (
            f"{described.source.title} as {described.precision} ({described.scheme}) for "
            f"{described.device.title}, run by {described.backend_title}"
        ),
        **licences,
        "pedigree": {"ancestors": [_ancestor(part) for part in parts(described.source)]},
        "components": [_file(entry) for entry in sorted(files, key=lambda one: one.path)],
        "modelCard": _card(described),
        "properties": _properties(
            source_digest=described.source.digest,
            source_widened_from=described.source.widened_from,
            learned_weights=described.weights.digest if described.weights else None,
            chat_template_sha256=described.chat_template.sha256
            if described.chat_template
            else None,
        ),
    }


def _licences(licence: Licence) -> list[Json]:
    """What the SPDX list has by its identifier, all else by its name; nothing where nobody said."""
    if licence.id is None:
        return []
    if spdx := SPDX.get(licence.id):
        return [{"license": {"id": spdx}}]
    name = f"see {licence.files[0]}" if licence.id == "other" and licence.files else licence.id
    return [{"license": {"name": name}}]


def _ancestor(part: Origin | Source) -> dict[str, Json]:
    named: dict[str, Json] = {"type": "machine-learning-model", "name": part.title}
    if part.kind == "hub" and part.repo and part.revision:
        group, _, name = part.repo.partition("/")
        address = purl(part.repo, part.revision)
        named |= {"group": group, "name": name, "version": part.revision, "purl": address}
    return {**named, "properties": _properties(kind=part.kind, file=part.file)}


def _file(entry: FileEntry) -> dict[str, Json]:
    return {
        "type": "file",
        "bom-ref": f"file:{entry.path}",
        "name": entry.path,
        "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
    }


def _card(described: Description) -> dict[str, Json]:
    """The model card: task, architecture, how it is quantized, and how close it is to the
    original."""
    figures = described.fidelity.metrics
    sees = [{"format": "image"}] if described.fidelity.vision else []
    return {
        "modelParameters": {
            "task": "image-text-to-text" if sees else "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": described.source.architecture,
            "datasets": [{"ref": _reference(one)} for one in _texts(described)],
            "inputs": [{"format": "text"}, *sees],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(described))},
        "properties": _properties(
            precision=described.precision,
            quantization=described.scheme,
            bits_per_weight=figures.get("bits_per_weight"),
            size_gib=figures.get("size_gib"),
            parameters=described.source.parameters,
            context_length=described.source.context_length,
            confidence=f"{CONFIDENCE} of a normal distribution",
        ),
    }


def _metrics(described: Description) -> Iterator[dict[str, Json]]:
    """Every figure of fidelity but those of pictures and answers, whose parts have no room here."""
    fidelity = described.fidelity
    for row in metrics.ROWS:
        if row.kind != "fidelity" or row.name not in fidelity.metrics:
            continue
        value, error = fidelity.metrics[row.name], fidelity.stderr.get(row.name)
        found: dict[str, Json] = {"type": row.name, "value": repr(value)}
        if error is not None:
            reach = STANDARD_ERRORS * error
            bounds = {"lowerBound": repr(value - reach), "upperBound": repr(value + reach)}
            found["confidenceInterval"] = bounds
        yield found


def _texts(described: Description) -> list[Material]:
    return [one for one in materials(described) if one.purpose is not None]


def _reference(one: Material) -> str:
    return f"data:{one.step}/{one.path}"


def _data(one: Material) -> dict[str, Json]:
    data: dict[str, Json] = {
        "type": "data",
        "bom-ref": _reference(one),
        "name": one.path,
        "description": str(one.purpose),
        "hashes": [{"alg": "SHA-256", "content": one.sha256}],
        "data": [{"type": "dataset", "name": one.path}],
        "properties": _properties(uri=one.uri),
    }
    return data | (_published(one.hub) if one.hub else {})


def _published(hub: Hub) -> dict[str, Json]:
    group, _, name = hub.repo.partition("/")
    return {"group": group, "name": name, "version": hub.revision}


def _installed(described: Description) -> Iterator[dict[str, Json]]:
    """Every package that a toolchain had, once; which one says its property."""
    had: dict[tuple[str, str], list[str]] = {}
    for toolchain in toolchains(described):
        for name, version in toolchain.packages.items():
            had.setdefault((name, version), []).append(toolchain.name)
    for (name, version), places in sorted(had.items()):
        known = re.sub(r"[-_.]+", "-", name).lower()
        address = f"pkg:pypi/{known}@{quote(version, safe='')}"
        yield {
            "type": "library",
            "bom-ref": f"tool:{name}=={version}",
            "name": name,
            "version": version,
            "purl": address,
            "properties": _properties(toolchains=" ".join(sorted(set(places)))),
        }


def _properties(**values: Json) -> list[Json]:
    """What CycloneDX has no field for, in a namespace of ours; what is None is left out."""
    return [
        {"name": f"phipipe:{name}", "value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in sorted(values.items())
        if value is not None
    ]

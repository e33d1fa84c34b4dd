"""A package as an OCI artifact: CNCF ModelPack (modelpack/model-spec), a raw layer for each file.

What is attached to a package are artifacts of their own that refer to the model's: referrers. Same
package, same bytes: nothing here has a time or a place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from phipipe.errors import SourceError
from phipipe.evaluate import papers, reference
from phipipe.files import file_names, json_files
from phipipe.hub.published import Published
from phipipe.package.manifest_schema import Manifest
from phipipe.publishing.sealed import Item, Sealed
from phipipe.steps import Json

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
NOTHING = b"{}"  # the content of what is ``EMPTY``
FILE = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # by which other clients name the files that they write
# what is attached → the artifact's type, and its layer's
REFERRERS = {
    papers.PROVENANCE: ("application/vnd.in-toto+json", "application/vnd.in-toto+json"),
    papers.SIGNATURE: (
        "application/vnd.phipipe.model-signature.v1+json",
        "application/vnd.dev.sigstore.bundle.v0.3+json",
    ),
}
# of a package's files: the end of a name, and what the model's format is called
WEIGHTS = {
    ".gguf": "gguf",
    ".onnx": "onnx",
    ".data": "onnx",
    ".safetensors": "safetensors",
    ".litertlm": "litertlm",
    ".tflite": "tflite",
    ".bin": "openvino",
    ".xml": "openvino",
}
DOCS = (papers.CARD, papers.RECIPE, papers.MANIFEST, papers.SUMS, papers.BILL)
PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}  # it has no word for int4
SPDX = {"mit": "MIT", "apache-2.0": "Apache-2.0"}


@dataclass(frozen=True)
class Blob:
    """A document that is sent as it stands."""

    content: bytes

    @property
    def digest(self) -> str:
        """As registries name it."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self, media_type: str) -> dict[str, Json]:
        """How others point to it."""
        return {"mediaType": media_type, "digest": self.digest, "size": len(self.content)}


def _blob(value: Json) -> Blob:
    return Blob(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def config(package: Sealed) -> Blob:
    """What the model is, as far as the format has words for it."""
    manifest = package.manifest
    source = manifest.source
    descriptor: dict[str, Json] = {"name": manifest.name, "title": source.title}
    if source.repo:
        descriptor |= {
            "sourceURL": f"https://huggingface.co/{source.repo}",
            "revision": source.revision,
        }
    if (known := SPDX.get(manifest.licence.id or "")) is not None:
        descriptor["licenses"] = [known]
    seen = ["text", "image"] if manifest.fidelity.vision else ["text"]
    about: dict[str, Json] = {
        "architecture": "transformer",
        "format": _format(manifest),
        "paramSize": _parameters(source.parameters),
        "quantization": manifest.scheme,
        "capabilities": {"inputTypes": seen, "outputTypes": ["text"]},
    }
    if manifest.precision in PRECISIONS:
        about["precision"] = PRECISIONS[manifest.precision]
    layers = [f"sha256:{item.sha256}" for item in package.own]
    files = {"type": "layers", "diffIds": layers}
    return _blob({"descriptor": descriptor, "config": about, "modelfs": files})


def _format(manifest: Manifest) -> str:
    names = [entry.path for entry in manifest.files if not _is_reference(entry.path)]
    found = (word for end, word in WEIGHTS.items() if any(name.endswith(end) for name in names))
    return next(found, manifest.backend)


def _parameters(count: int) -> str:
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if count >= 10**power:
            return f"{count / 10**power:.1f}{letter}"
    return f"{count / 1000:.1f}K"


def _is_reference(path: str) -> bool:
    return PurePosixPath(path).parts[0] == reference.FOLDER


def _media_type(path: str) -> str:
    kind = "weight.config"
    if _is_reference(path):
        kind = "dataset"
    elif papers.is_paper(PurePosixPath(path)) or path in DOCS:
        kind = "doc"
    elif PurePosixPath(path).suffix in WEIGHTS:
        kind = "weight"
    return f"application/vnd.cncf.model.{kind}.v1.raw"


def _layer(item: Item, media_type: str) -> dict[str, Json]:
    return {
        "mediaType": media_type,
        "digest": f"sha256:{item.sha256}",
        "size": item.size,
        "annotations": {FILE: item.path, TITLE: item.path},
    }


def manifest(package: Sealed, about: Blob) -> Blob:
    """The artifact: ``about`` is its ``config``; a layer for each file that the digest covers."""
    return _blob(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": MODEL,
            "config": about.descriptor(CONFIG),
            "layers": [_layer(item, _media_type(item.path)) for item in package.own],
            "annotations": {TITLE: package.manifest.name},
        }
    )


def referrer(item: Item, subject: Mapping[str, Json]) -> Blob:
    """The artifact that attaches ``item`` to the ``subject``, a descriptor."""
    kind, layer = REFERRERS[item.path]
    return _blob(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": Blob(NOTHING).descriptor(EMPTY),
            "layers": [_layer(item, layer)],
            "subject": dict(subject),
        }
    )


def index(entries: Sequence[Mapping[str, Json]]) -> Blob:
    """What refers to an artifact, for registries that keep no such list themselves."""
    return _blob({"schemaVersion": 2, "mediaType": INDEX, "manifests": [dict(e) for e in entries]})


def kind_of(path: str) -> dict[str, str]:
    """What a registry's list says of what attaches ``path``; nothing of other files."""
    return {"artifactType": REFERRERS[path][0]} if path in REFERRERS else {}


def parsed(raw: bytes | None) -> Mapping[str, Json]:
    """A manifest or an index of a registry's as JSON; nothing where it is none."""
    if raw is None:
        return {}
    try:
        found = json_files.parse(raw, PurePosixPath("manifest"))  # type: ignore[arg-type]
    except SourceError:
        return {}
    return found if isinstance(found, dict) else {}


def layers(found: Mapping[str, Json]) -> Iterator[Published]:
    """The files that an artifact's layers hold, by the paths that they say.

    Raises:
        SourceError: a layer is not as a package's.
    """
    rows = found.get("layers")
    paths: set[str] = set()
    for row in rows if isinstance(rows, list) else []:
        file = described(row)
        if file is None or file_names.unsafe(file.name) or file_names.alike(file.name) in paths:
            raise SourceError("the artifact has a layer that no package has")
        paths.add(file_names.alike(file.name))
        yield file


def described(row: Json) -> Published | None:
    """A layer as a file; None where it says no path, size or SHA-256."""
    entry = row if isinstance(row, dict) else {}
    notes = entry.get("annotations")
    path = notes.get(FILE) if isinstance(notes, dict) else None
    size, digest = entry.get("size"), entry.get("digest")
    if not isinstance(path, str) or not isinstance(digest, str) or not is_digest(digest):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return None
    return Published(path, size, "sha256", digest[7:])


def is_digest(value: Json) -> bool:
    """Whether ``value`` names content by SHA-256."""
    hexadecimal = isinstance(value, str) and len(value) == 71 and value.startswith("sha256:")
    return hexadecimal and all(letter in "0123456789abcdef" for letter in value[7:])

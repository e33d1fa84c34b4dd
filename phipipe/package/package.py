"""The step that makes what ships: the artifact, its card, its licence, its recipe and its manifest.

Same inputs, same bytes: no time, no host name, no path of the build machine enters a package.
Light: it runs in the parent process. What reads packages comes in here: ``open_``, ``verify``,
``read_manifest``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath

from phipipe import __version__
from phipipe.errors import SourceError, StepFailed
from phipipe.evaluate import papers, reference, reports, run_reports
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.papers import CARD
from phipipe.evaluate.reports import Baseline, Change, Metrics, Parity, Speed, Vision
from phipipe.evaluate.run_reports import AsRun
from phipipe.files import file_names
from phipipe.hub.take import STORED
from phipipe.package import (
    bill,
    card,
    closed_world,
    gate,
    leaks,
    learning,
    licences,
    provenance,
    ready,
    recipe,
    template,
)
from phipipe.package import manifest as manifests
from phipipe.package.description import Description, Licence
from phipipe.package.manifest import Finding, read_manifest
from phipipe.package.manifest_schema import Manifest
from phipipe.settings import Settings
from phipipe.steps import Inputs, Json, Params
from phipipe.store import keys
from phipipe.store.files import copy, take_over
from phipipe.store.keys import FileEntry

__all__ = ["CARD", "Finding", "Manifest", "open_", "package", "read_manifest", "verify"]

RESERVED = frozenset(
    name.casefold()
    for name in (
        CARD,
        recipe.NAME,
        manifests.NAME,
        manifests.SUMS,
        papers.BILL,
        *papers.ATTACHED,
        *papers.APPS,
        reference.FOLDER,
    )
)


def package(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): put together what ships.

    ``inputs``: artifact, source, metrics, speed, gates, baseline, reference; run where
    ``kld_run`` was scored apart; parity where there was a conversion; weights where they were
    learned; vision and original of a model that sees; answers where some were asked for.
    ``params``: what ``plan`` knows (name, recipe, device, backend …) and ``steps``, the records of
    all steps before.

    Raises:
        StepFailed: the artifact holds something that cannot ship, its chat template is not the
            source's, or a path of this machine would leave it.
    """
    _copy(inputs["artifact"], out)
    shutil.copytree(
        inputs["reference"],
        out / reference.FOLDER,
        copy_function=lambda a, b: copy(Path(a), Path(b)),
    )
    licence = licences.take(inputs["source"], out, params["source"].get("license"))
    _write(out / recipe.NAME, recipe.text(params))
    baseline, metrics = reports.read(Baseline, inputs["baseline"]), _metrics(inputs, params)
    described = _describe(inputs, params, baseline, metrics, licence)
    uses = ready.uses(described, out, params.get("apps", ()))
    _write(out / CARD, card.render(described, baseline, metrics.answers, uses))
    hashed = _with_bill(out, described)
    _refuse_leaks(
        inputs, out, [one.text for one in metrics.answers] + [chat.text for chat in baseline.chats]
    )
    manifests.seal(out, described.as_json(), hashed)
    try:
        manifest = read_manifest(out)
        gate.pass_(out, manifest)
    except SourceError as error:
        raise StepFailed(
            f"no command of phipipe's would open this package: {error.message}"
        ) from None
    provenance.write(out, manifest)


def verify(folder: Path) -> list[Finding]:
    """Everything by which ``folder`` differs from what was packaged, or that phipipe never
    packages; often nothing.

    Raises:
        SourceError: there is no such folder, or a newer phipipe made the package.
    """
    changed = closed_world.verify(folder)
    if any(finding.path == manifests.NAME for finding in changed):
        return changed
    skip, manifest = [finding.path for finding in changed], read_manifest(folder)
    said = () if provenance.NAME in skip else provenance.findings(folder, manifest)
    return sorted({*changed, *gate.findings(folder, manifest, skip), *said})


def open_(folder: Path) -> Manifest:
    """The manifest of the package in ``folder``, every file of which is as it was packaged and has
    passed the gate.

    What reads a package calls this first, right before it does.

    Raises:
        SourceError: it is no package, was changed, or holds what phipipe never packages.
    """
    manifest = read_manifest(folder)
    if changed := closed_world.verify(folder):
        raise SourceError(
            f"`{folder}` is not as it was packaged: {changed[0]}", hint=f"phipipe verify {folder}"
        )
    gate.pass_(folder, manifest)
    return manifest


def _copy(artifact: Path, out: Path) -> None:
    """The artifact's files, byte for byte; plain files only."""
    for path in sorted(artifact.rglob("*")):
        name = path.relative_to(artifact).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise StepFailed(
                f"the artifact's `{name}` is no plain file: packages hold neither links nor devices"
            )
        if reason := file_names.unsafe(name):
            raise StepFailed(f"the artifact's `{ascii(name)[1:-1]}` cannot ship: {reason}")
        if name.split("/")[0].casefold() in RESERVED:
            raise StepFailed(
                f"the artifact has a `{name}` of its own, where the package's must stand"
            )
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # on a file system that ignores case
            raise StepFailed(f"the artifact has two files that some systems call `{name}`")
        take_over(path, target)
    if not any(out.iterdir()):
        raise StepFailed("the artifact is empty: there is nothing to package")


def _with_bill(out: Path, described: Description) -> list[FileEntry]:
    """Add the bill of materials to ``out``, which holds all but that; every file, hashed."""
    hashed = list(keys.hash_tree(out))
    shipped = [one for one in hashed if not papers.is_paper(PurePosixPath(one.path))]
    content = bill.text(described, shipped).encode()
    (out / bill.NAME).write_bytes(content)
    own = FileEntry(bill.NAME, len(content), hashlib.sha256(content).hexdigest())
    return sorted([*hashed, own], key=lambda entry: entry.path)


def _describe(
    inputs: Inputs, params: Params, baseline: Baseline, metrics: Metrics, licence: Licence
) -> Description:
    """The manifest but for files and digest."""
    portable = recipe.portable(params)
    steps = {name: _provenance(step) for name, step in params["steps"].items()}
    # as it came: what a quantized checkpoint was widened to, or a language model cut from, is ours
    original = steps["original" if "original" in inputs else "source"]
    if params["source"]["kind"] != "adapter":
        original = steps.get(STORED, original)
    same = ("name", "device", "backend", "backend_title", "api", "on_target", "warnings")
    weights = learning.told(inputs.get("weights"))
    emulation = inputs.get("emulation")
    return Description.model_validate(
        {
            "type": manifests.TYPE,
            "format": manifests.FORMAT,
            "phipipe": __version__,
            **{name: params[name] for name in same},
            "scheme": learning.scheme(params, weights),
            "recipe": portable,
            "precision": portable["precision"],
            "source": {
                **params["source"],
                "digest": original["digest"],
                "files": original["outputs"],
            },
            "fixups": params["fixups"],
            "chat_template": template.shipped(inputs, metrics.sanity),
            "fidelity": _fidelity(inputs, baseline, metrics),
            "speed": reports.read(Speed, inputs["speed"]),
            "licence": licence,
            "gates": reports.verdicts(inputs["gates"]),
            "twin": params.get("twin"),
            "emulation": _json(next(emulation.glob("*.json"))) if emulation else None,
            "weights": weights,
            "steps": steps,
        }
    )


def _metrics(inputs: Inputs, params: Params) -> Metrics:
    run = reports.read(AsRun, inputs["run"]) if "run" in inputs else None
    return run_reports.joined(reports.read(Metrics, inputs["metrics"]), params.get("knob"), run)


def _fidelity(inputs: Inputs, baseline: Baseline, metrics: Metrics) -> dict[str, Json]:
    kept = {"metrics", "stderr", "positions", "profile", "sanity", "run", "sampling"}
    scored = {"tokens", "window", "skip", "ppl", "ppl_stderr"}
    fidelity = metrics.model_dump(include=kept, exclude_unset=True)
    fidelity["baseline"] = baseline.model_dump(include=scored, exclude_unset=True)
    if "change" in inputs:
        fidelity["change"] = reports.read(Change, inputs["change"])
    if "parity" in inputs:
        fidelity["parity"] = reports.read(Parity, inputs["parity"])
    if "vision" in inputs:
        fidelity["vision"] = reports.read(Vision, inputs["vision"])
    if "answers" in inputs:
        answers = reports.read(Answers, inputs["answers"])
        fidelity["generation"] = answers.model_dump(exclude={"replies"}, exclude_unset=True)
    return fidelity


def _provenance(step: Mapping[str, Json]) -> dict[str, Json]:
    """A step's record without what differs from run to run: of its outputs, names and content
    count."""
    outputs = [
        {name: output[name] for name in ("path", "size", "sha256")} for output in step["outputs"]
    ]
    names = ("key", "runs", "version", "params", "inputs", "tools", "digest")
    ran = {"toolchain": step["toolchain"]} if step.get("toolchain") else {}
    return {**{name: step[name] for name in names}, **ran, "outputs": outputs}


def _refuse_leaks(inputs: Inputs, out: Path, answers: list[str]) -> None:
    settings = Settings.read()
    own = [
        Path.home(),
        Path(tempfile.gettempdir()),
        settings.cache,
        settings.toolchains,
        out.parent,
    ]
    own += [folder.parent for folder in inputs.values()]
    own += {path.resolve().parent for path in inputs["source"].iterdir() if path.is_symlink()}
    quoted = (
        text.encode("utf-8", "surrogatepass") for text in chain(answers, _texts(inputs["source"]))
    )
    leaked = leaks.find(out, own, quoted)
    if leaked:
        more = f" (and {len(leaked) - 1} more)" if len(leaked) > 1 else ""
        raise StepFailed(
            f"`{leaked[0].file}`, line {leaked[0].line}, holds a path of the build machine: "
            f"`{leaked[0].path}`{more}",
            hint="if it is in the checkpoint's own files, remove it there; else report a bug in "
            "phipipe",
        )


def _texts(source: Path) -> Iterator[str]:
    for path in sorted(source.iterdir()):
        if (
            path.is_file()
            and path.suffix != ".safetensors"
            and path.stat().st_size <= leaks.MAX_BYTES
        ):
            yield path.read_text("utf-8", errors="replace")


def _json(path: Path) -> Json:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # no newline translation

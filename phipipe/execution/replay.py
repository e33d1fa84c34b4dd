"""What a rebuild takes over instead of making it: figures that no two machines give alike, and what
the user's cache has of the hub.

A measurement's report stands in the manifest, whole, and the manifest has its digest: so the very
file can be written again. With it in the store, all that derives from it (gates, card, sums,
manifest) comes out as it was, bit for bit, or shows that something else differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate import reports
from phipipe.evaluate.reports import Speed
from phipipe.evaluate.run_reports import AsRun
from phipipe.evaluate.speed import host
from phipipe.package.manifest_schema import Manifest, Step
from phipipe.package.materials import FETCHED, hub_of
from phipipe.planning.plan import Plan
from phipipe.steps import Json
from phipipe.store import files, keys
from phipipe.store.store import Store

MEASURED, AS_RUN = "evaluate/measure", "evaluate/compare_run"
_KEPT = ("format", "runs", "version", "params", "inputs", "tools", "step", "recipe", "usage")


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """A plan whose measurements count as taken where the package's were, and the steps whose
    results are the package's own."""

    plan: Plan
    steps: tuple[str, ...]


def take_over(plan: Plan, manifest: Manifest, store: Store) -> TakenOver:
    """Lay what ``manifest`` says was measured into ``store``, for ``plan`` to find.

    The figure of a file as it runs is computed anew on a machine like the package's: it is
    the same there. Elsewhere processors round otherwise, and it is taken over, too.
    """
    then = dict(manifest.speed.host)
    alike = then == host()
    steps, taken = list(plan.steps), list[str]()
    for i, step in enumerate(steps):
        recorded = manifest.steps.get(step.name)
        if not step.measurement or recorded is None or recorded.runs != step.runs:
            continue
        record = _record(recorded, then)
        if keys.key_of(record) != recorded.key:
            continue  # a machine of a cluster measured it, of which nothing is written down
        steps[i] = replace(step, host=then)
        text = None if step.runs == AS_RUN and alike else _report(step.runs, manifest)
        if text is not None and _is_recorded(text, recorded):
            _lay(store, recorded.key, record, recorded.outputs[0].path, text)
            taken.append(step.name)
    return TakenOver(plan=replace(plan, steps=tuple(steps)), steps=tuple(taken))


def _record(step: Step, then: Mapping[str, Json]) -> dict[str, Json]:
    """What the step's key was made of; see ``Bench``."""
    return {
        "format": keys.FORMAT,
        "runs": step.runs,
        "version": step.version,
        "params": dict(step.params),
        "inputs": dict(step.inputs),
        "tools": dict(step.tools),
        "host": dict(then),
    }


def _report(runs: str, manifest: Manifest) -> bytes | None:
    """The file that the step left, as far as the manifest has what is in it."""
    if runs == MEASURED:
        return reports.dump(manifest.speed.as_json()).encode()
    fidelity = manifest.fidelity
    if runs != AS_RUN or fidelity.run is None or "kld_run" not in fidelity.metrics:
        return None
    figures, errors = (
        {"kld_run": of.get("kld_run", 0)} for of in (fidelity.metrics, fidelity.stderr)
    )
    run = AsRun(metrics=figures, stderr=errors, positions=fidelity.run.positions)
    return reports.dump(run.as_json()).encode()


def _is_recorded(text: bytes, step: Step) -> bool:
    """Whether ``text`` is all that the step left, by its digest."""
    names = [(one.path, one.sha256) for one in step.outputs]
    digest = hashlib.sha256(text).hexdigest()
    return names in ([(kind.FILE, digest)] for kind in (Speed, AsRun))


def _lay(store: Store, key: str, record: Mapping[str, Json], name: str, text: bytes) -> None:
    with store.scratch() as scratch:
        out = scratch / "out"
        out.mkdir()
        (out / name).write_bytes(text)
        store.commit(key, out, {**record, "step": name, "recipe": "", "usage": {}})


def lend(manifest: Manifest, own: Path, store: Store) -> None:
    """Give ``store`` what the cache ``own`` has of the hub's files that the package was made from,
    and what the hub was asked of them; all of it is hashed again.

    Raises:
        SourceError: the user's cache is damaged there.
        StoreError: there is no room.
    """
    for name, step in manifest.steps.items():
        hub = hub_of(step)
        if step.runs != FETCHED or hub is None:
            continue
        below = Path("hub") / f"{hub.kind}s" / hub.repo / hub.revision
        for path in _asked(own / below):
            target = store.root / below / path.relative_to(own / below)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _lend(Store(own), store, name, step)


def _asked(folder: Path) -> Iterator[Path]:
    """What ``hub.repository`` remembers of a commit, but for downloads."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and (path.name == "listing.json" or "view" in inner[:-1]):
            yield path


def _lend(own: Store, store: Store, name: str, step: Step) -> None:
    stored = own.peek(step.key)
    if stored is None or stored.digest != step.digest:
        return
    record = {key: value for key, value in own.record(step.key).items() if key in _KEPT}
    with store.scratch(stored.size_bytes) as scratch, contextlib.ExitStack() as held:
        held.enter_context(own.session())
        for output in stored.outputs:
            target = scratch / "out" / str(output["path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            files.copy(stored.path / str(output["path"]), target)
        laid = store.commit(step.key, scratch / "out", record)
    if laid.digest != step.digest:
        raise SourceError(
            f"what the cache has of the step `{name}` is damaged", hint="phipipe cache verify"
        )

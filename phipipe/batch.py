"""Many recipes at once: planned together, run as one graph, and put where the next batch finds what
it needs.

``OUT/NAME/VERSION/`` are packages, VERSION the beginning of the package's digest: what is there is
never written again. ``OUT/NAME/latest`` is a file with one line, the version that was accepted
last: its gates passed, and it is not worse than its predecessor by more than the recipe's
``evaluate.tolerance``. A batch compares with that version, not with whatever the batch before made:
what was refused yesterday is refused again today, until the recipe tolerates it or somebody removes
``latest``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from phipipe import claims, collect, manifest, metrics, package, preflight, refusals, room, schedule
from phipipe import plan as planner
from phipipe.errors import GateFailed, PhipipeError, RecipeError, Skipped, StoreError
from phipipe.manner import Engine, Manner
from phipipe.plans import ReadOnce
from phipipe.results import Listener, Outcome
from phipipe.selection import Item
from phipipe.settings import Settings
from phipipe.store import Store

LATEST = "latest"
LOCK = ".batch.lock"
DIGITS = 16  # of a digest, in a version
VERSION = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
LEFT = re.compile(r"(\.[\w-]+\.)[0-9a-f]{32}")  # how ``claims.claim`` names what is being written
RESERVED = frozenset(
    ("batch.json", "junit.xml", "board.html", "board.json", "board.md", "boards")
)  # beside builds
SIZES, SPEEDS = metrics.names("size"), metrics.names("speed")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A metric that is worse than before by more than ``limit``; ``after`` is None: it is not
    measured any more."""

    metric: str
    before: float
    after: float | None
    limit: float

    def words(self) -> str:
        now = "is not measured any more" if self.after is None else f"went to {self.after:.4g}"
        return (
            f"`{self.metric}` was {self.before:.4g} and {now}; {self.limit:.4g} worse is tolerated"
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of one build. ``error`` is None where its package was accepted.

    ``metrics`` are the new figures as far as they were taken, ``before`` those of the package
    accepted last (empty: there was none); ``compared`` the names of those that were taken alike.
    """

    item: Item
    outcome: Outcome | None = None
    error: PhipipeError | None = None
    version: str | None = None
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    compared: frozenset[str] = frozenset()
    regressions: tuple[Regression, ...] = ()

    @property
    def state(self) -> str:
        """built, cached, gated (a gate, or worse than before), failed, refused (never started),
        skipped."""
        if isinstance(self.error, Skipped):
            return "skipped"
        if isinstance(self.error, GateFailed):
            return "gated"
        if self.error is not None:
            return "failed" if self.outcome else "refused"
        return "cached" if self.outcome and self.outcome.all_cached else "built"


def plan(
    items: Sequence[Item], store: Store, settings: Settings, out: Path, *, elsewhere: bool = False
) -> list[str]:
    """Plan every item that can be; the others get their ``error``. Returns warnings.

    ``elsewhere``: steps look for machines that are large enough, and have their toolchains.

    Raises:
        StoreError: the disk has no room for all of it.
    """

    read = ReadOnce()
    for item in items:
        if item.build is None:
            continue
        try:
            _check_place(item.name, out)
            item.plan = planner.prepare(item.build, read, elsewhere=elsewhere)
        except PhipipeError as error:
            item.error = error
    return (
        [] if elsewhere else _preflight([item for item in items if item.plan], store, settings, out)
    )


def _check_place(name: str, out: Path) -> None:
    if name in RESERVED:
        raise RecipeError(
            f"a build of a batch cannot be called `{name}`", hint="change the recipe's `name:`"
        )
    if (out / name / manifest.NAME).exists():
        message = f"`{out / name}` is a package, where the batch keeps the versions of `{name}`"
        raise StoreError(message, hint="move it away, or choose another --out")


def _preflight(items: Sequence[Item], store: Store, settings: Settings, out: Path) -> list[str]:
    """Refuse builds that this machine has too little memory for, and the batch if the disk is too
    small."""
    plans = [item.plan for item in items if item.plan]
    warnings = []
    for i, refusal in preflight.too_large(plans, store, settings).items():
        if settings.preflight:
            items[i].error, items[i].plan = refusal, None
        else:
            warnings.append(refusal.message)
    if full := preflight.too_little_disk(
        [item.plan for item in items if item.plan], store, settings, out
    ):
        if settings.preflight:
            raise full
        warnings.append(full.message)
    return warnings


def run(
    items: Sequence[Item],
    store: Store,
    settings: Settings,
    listener: Listener,
    out: Path,
    *,
    jobs: int | None = None,
    keep: int = 3,
    fail_fast: bool = False,
    engine: Engine | None = None,
) -> list[Done]:
    """Build what is planned, and accept what is good enough.

    Args:
        keep: packages kept for each build that came to one, the one named by ``latest`` always
            among them.
        engine: see ``Manner``.
        fail_fast: start nothing more after the first failure; a refused item is one.

    Raises:
        Interrupted: see ``schedule.attempt``; what was finished is stored, and the next batch goes
            on from there.
    """
    first = next((item for item in items if item.error), None)
    if fail_fast and first:
        reason = Skipped(f"not built: `{first.name}` was refused")
        return [Done(item=i, error=i.error or reason, metrics={}, before={}) for i in items]
    planned = [item for item in items if item.plan]
    plans = [item.plan for item in planned if item.plan]
    manner = Manner(
        out=out,
        place=lambda out, name, digest: out / name / digest[:DIGITS],
        jobs=jobs,
        fail_fast=fail_fast,
        engine=engine,
    )
    outcomes = schedule.attempt(plans, store, settings, listener, manner)
    found = {id(item): outcome for item, outcome in zip(planned, outcomes, strict=True)}
    with refusals.guard(out, remedy=room.KEEP_OUT):
        out.mkdir(parents=True, exist_ok=True)
        locks_work = claims.locks_work(out / LOCK)
    with FileLock(
        out / LOCK
    ):  # another batch may end at this moment: each compares with what the other accepted
        for folder in [out, *(out / item.name for item in planned)] if locks_work else ():
            _sweep(folder)
        return [_finish(item, found.get(id(item)), out, keep, listener.note) for item in items]


def _finish(
    item: Item, outcome: Outcome | None, out: Path, keep: int, note: Callable[[str], None]
) -> Done:
    """``_accept``, whose own failures are the build's."""
    try:
        with refusals.guard(out, remedy=room.KEEP_OUT):
            return _accept(item, outcome, out, keep, note)
    except PhipipeError as error:
        return Done(item=item, outcome=outcome, error=error, metrics={}, before={})


def _accept(
    item: Item, outcome: Outcome | None, out: Path, keep: int, note: Callable[[str], None]
) -> Done:
    """Compare a build's package with the one accepted last; point at it, unless it is worse; remove
    old ones."""
    if outcome is None or item.build is None:
        return Done(item=item, error=item.error, metrics={}, before={})
    home, metrics = out / item.name, figures(outcome)
    accepted = latest(home)
    old = _manifest(home, accepted, note) if accepted else None
    before = _figures_of(old) if old else {}
    if outcome.package is None:
        return Done(item=item, outcome=outcome, error=outcome.error, metrics=metrics, before=before)
    version = outcome.package.name
    worse: tuple[Regression, ...] = ()
    compared: frozenset[str] = frozenset()
    if old is not None:
        new = old if version == accepted else package.read_manifest(outcome.package)
        compared = comparable(old, new)
        worse = regressions(
            {n: before[n] for n in compared}, metrics, item.build.recipe.evaluate.tolerance
        )
    if version != accepted and not worse:
        point(home, version)
    os.utime(outcome.package)  # the order of age is that of last use
    for gone in surplus(home, keep):
        _remove(gone)
    return Done(
        item=item,
        outcome=outcome,
        error=_regressed(item.name, worse, home) if worse else None,
        version=version,
        metrics=metrics,
        before=before,
        compared=compared,
        regressions=worse,
    )


def _regressed(name: str, worse: Sequence[Regression], home: Path) -> GateFailed:
    words = "; ".join(one.words() for one in worse)
    return GateFailed(
        f"`{name}` is worse than the package accepted before: {words}",
        hint=f"`{LATEST}` stays where it was; to accept it, raise `evaluate.tolerance`, or "
        f"remove `{home / LATEST}`",
    )


# --- figures


def figures(outcome: Outcome) -> dict[str, float]:
    """Everything that was measured of a build, also of one whose gates failed."""
    files = (
        ("evaluate", "metrics.json"),
        ("measure", "speed.json"),
        ("vision-evaluate", "vision.json"),
    )
    reports = [found for step, name in files if (found := outcome.load(step, name))]
    return {name: value for report in reports for name, value in report["metrics"].items()}


def _figures_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    fidelity = manifest["fidelity"]
    seen = fidelity.get("vision", {}).get("metrics", {})
    return {**fidelity["metrics"], **manifest["speed"]["metrics"], **seen}


def comparable(old: Mapping[str, Any], new: Mapping[str, Any]) -> frozenset[str]:
    """Metrics that two manifests took alike: fidelity on the same tokens, speed on the same
    machine; sizes always."""

    def text(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
        baseline = manifest["fidelity"]["baseline"]
        return manifest["steps"]["text"]["digest"], *(
            baseline[name] for name in ("tokens", "window", "skip")
        )

    def machine(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
        return manifest["speed"].get("host"), manifest["speed"].get("prompt_tokens")

    names = frozenset(_figures_of(old))
    fidelity = names - SIZES - SPEEDS if text(old) == text(new) else frozenset()
    return (
        names & SIZES | fidelity | (names & SPEEDS if machine(old) == machine(new) else frozenset())
    )


def regressions(
    before: Mapping[str, float], after: Mapping[str, float], tolerance: Mapping[Any, float]
) -> tuple[Regression, ...]:
    """Where ``after`` is worse than ``before`` by more than is tolerated."""
    found = []
    for metric, limit in sorted(tolerance.items()):
        if metric not in before:
            continue
        was, now = before[metric], after.get(metric)
        loss = float("inf") if now is None else metrics.METRICS[metric].loss(was, now)
        if loss > limit:
            found.append(Regression(metric=metric, before=was, after=now, limit=limit))
    return tuple(found)


# --- the output folder


def latest(home: Path) -> str | None:
    """The version that was accepted last, or None: there is none, or the file says something
    else."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        text = (home / LATEST).read_text("utf-8", errors="replace").strip()
        return text if VERSION.fullmatch(text) else None
    return None


def point(home: Path, version: str) -> None:
    """Make ``latest`` name ``version``: readers see the old line or the new one, also after a power
    loss."""
    with claims.claim(home, f".{LATEST}.") as aside:
        collect.write(aside / LATEST, f"{version}\n".encode())
        (aside / LATEST).replace(home / LATEST)
        collect.flush_folder(home)


def versions(home: Path) -> list[Path]:
    """Packages of a build, the one that a batch made or found last first."""
    found = [
        path
        for path in home.iterdir()
        if VERSION.fullmatch(path.name) and (path / manifest.NAME).is_file()
    ]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def surplus(home: Path, keep: int) -> list[Path]:
    """Packages beyond the ``keep`` newest; the one that ``latest`` names is never among them."""
    accepted = latest(home)
    others = [path for path in versions(home) if path.name != accepted]
    return others[max(0, keep - (1 if accepted else 0)) :]


def _sweep(home: Path) -> None:
    """Remove what batches that were killed have left half done."""
    found = [LEFT.fullmatch(path.name) for path in home.iterdir()] if home.is_dir() else []
    for prefix in {match.group(1) for match in found if match}:
        claims.sweep(home, prefix)


def _remove(folder: Path) -> None:
    """Rename first: nobody shall take half a package for a whole one."""
    with claims.claim(folder.parent, f".{folder.name}.") as aside:
        folder.rename(aside / "old")


def _manifest(home: Path, version: str, note: Callable[[str], None]) -> Mapping[str, Any] | None:
    """The manifest of the package that was accepted last; None if somebody damaged or removed
    it."""
    try:
        return package.read_manifest(home / version)
    except PhipipeError as error:
        note(f"nothing to compare `{home.name}` with: {error.message}")
        return None

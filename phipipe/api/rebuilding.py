"""A finished package made again, and compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from phipipe import __version__
from phipipe.api import building, workplace
from phipipe.api.building import Audience, Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.packages import Package
from phipipe.api.workplace import Note, UserPath, Workplace, path_of
from phipipe.errors import PhipipeError, SourceError, StepFailed
from phipipe.evaluate.speed import host
from phipipe.execution import rebuild as rebuilds
from phipipe.execution import replay
from phipipe.execution.rebuild import Given
from phipipe.files.user_paths import Kind
from phipipe.package import comparison, places
from phipipe.package import package as packages
from phipipe.package.comparison import Side
from phipipe.package.manifest import Finding
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.settings.apart import cache_in
from phipipe.signing import opening
from phipipe.store import exports, files, free_space, refusals
from phipipe.store.store import Store
from phipipe.toolchains import environments
from phipipe.words import counted


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A package that was made again from its own recipe.

    Attributes:
        equal: whether it is the same package, bit for bit.
        differences: every file that differs, with ``path`` and ``message``.
        reasons: why it may differ, the likeliest first: versions, then the machine.
        taken_over: steps whose results are the package's own, since no two runs give them alike:
            measurements.
        package: the new package; None where it was only compared.
    """

    equal: bool
    differences: tuple[Finding, ...]
    reasons: tuple[str, ...]
    taken_over: tuple[str, ...]
    package: Package | None

    def check(self) -> Rebuilt:
        """This, if it is the same package.

        Raises:
            StepFailed: it is another one; says the likely reason, and how many files differ.
        """
        if self.equal:
            return self
        named = ", ".join(one.path for one in self.differences[:3])
        more = "" if len(self.differences) <= 3 else " …"
        raise StepFailed(
            f"the rebuilt package is another one: {counted(len(self.differences), 'file')} differ "
            f"({named}{more})",
            hint=self.reasons[0]
            if self.reasons
            else "the same tools should give the same files: tell us which do not",
        )


def rebuild(
    package: UserPath,
    on_progress: OnProgress | None = None,
    *,
    out: UserPath | None = None,
    source: UserPath | None = None,
    adapter: UserPath | None = None,
    texts: Sequence[UserPath] = (),
    device: UserPath | None = None,
) -> Rebuilt:
    """Make a package again from its own recipe, in an empty cache, and compare.

    Nothing of the user's cache is used but what it has of the hub's files, by digest. Measurements
    are taken over from the package. While this lasts, other builds of this process use the same
    cache, which is removed at the end.

    Args:
        package: the package's folder.
        on_progress: as for ``run``.
        out: a folder for the new package; without it, it is only compared.
        source: the original's folder or GGUF (of an adapter: its base), where it was a local one.
        adapter: the adapter's folder, where it was a local one.
        texts: texts and prompts that were local files, in any order.
        device: the device file, where the recipe had one of its own.

    Raises:
        SourceError: the package was changed, or something that it was made from is missing: says
            what, by name and digest.
        PhipipeError: a step failed.
    """
    listener = Telling(on_progress)
    given = Given(
        source=None if source is None else workplace.original_path(source),
        adapter=None if adapter is None else path_of(adapter, Kind.FOLDER, "adapter", SourceError),
        texts=[path_of(text, Kind.FILE, "the text", SourceError) for text in texts],
        device=workplace.file_path(device, "the device"),
    )
    to = None if out is None else path_of(out, Kind.NEW_FOLDER, "the folder for packages")
    return made_again(workplace.package_path(package), given, to, listener.audience, listener.note)


def made_again(
    folder: Path,
    given: Given,
    out: Path | None,
    audience: Audience,
    note: Note,
    stream: TextIO | None = None,
) -> Rebuilt:
    """As ``rebuild``, for the command line and for Python alike; ``note`` hears beforehand why it
    will hardly be the same."""
    manifest = opening.open_(folder, note)
    if out is not None:
        _check_target(out, manifest.name)
    user = workplace.of_user(note)
    with _apart(user) as (place, workspace):
        replay.lend(manifest, user.settings.cache, place.store)
        plan = rebuilds.planned(manifest, given, workspace)
        taken = replay.take_over(plan, manifest, place.store)
        for reason in _reasons(folder, plan, place.settings):
            note(f"warning: {reason}")
        where = Where(out=workspace / "out")
        building.check_room([taken.plan], place, where, note)
        (outcome,) = building.attempt("rebuild", [taken.plan], place, audience, where, stream)
        if outcome.error:
            raise outcome.error
        assert outcome.package is not None
        old, new = (
            Side(folder=one, manifest=packages.read_manifest(one))
            for one in (folder, outcome.package)
        )
        differences = comparison.differences(old, new)
        reasons = _reasons(folder, plan, place.settings) if differences else []
        return Rebuilt(
            equal=not differences,
            differences=tuple(differences),
            reasons=tuple(reasons),
            taken_over=taken.steps,
            package=None if out is None else _kept(outcome.package, out / manifest.name),
        )


def _kept(made: Path, target: Path) -> Package:
    """The package in ``made``, copied to where it stays."""
    with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
        exports.export(made, files.times(made), target)
    return Package.open(target)


def _check_target(out: Path, name: str) -> None:
    """Refuse a folder for packages where the one called ``name`` could not be laid afterwards.

    Raises:
        StoreError: it is in a package, cannot be written, or holds something else there.
    """
    places.refuse_inside(out)
    refusals.probe(out)
    with refusals.guard(out, remedy=free_space.KEEP_OUT):
        exports.check_replaceable(out / name)


def _reasons(folder: Path, plan: Plan, settings: Settings) -> list[str]:
    """Why a rebuild here may be another package, the likeliest first."""
    manifest = packages.read_manifest(folder)
    tools = {}
    for step in plan.steps:
        if step.toolchain and (here := environments.installed(step.toolchain, settings)):
            tools[step.name] = here.packages
    found = comparison.reasons(manifest, phipipe=__version__, tools=tools)
    then, now = dict(manifest.speed.host), host()
    odd = [key for key in ("system", "machine", "processor") if then.get(key) != now[key]]
    if odd and then:
        found.append(
            f"it was made on another machine ({then.get('processor')}, {then.get('system')}), and "
            f"processors differ in what they round"
        )
    return found


@contextmanager
def _apart(user: Workplace) -> Iterator[tuple[Workplace, Path]]:
    """An empty cache and a folder to work in, both on the user's cache's disk and gone at the end:
    nothing stays there that no step reads any more. Logs of steps that failed are kept in the
    user's cache."""
    with user.store.scratch() as folder, cache_in(folder / "cache") as settings:
        store = Store(settings.cache)
        try:
            (folder / "work").mkdir()
            yield Workplace(replace(settings, keep_all=False), store), folder / "work"
        except PhipipeError as error:
            _keep_logs(error, settings.cache / "logs", user.settings.cache / "logs")
            raise


def _keep_logs(error: PhipipeError, logs: Path, kept: Path) -> None:
    """Move the logs that ``error`` may speak of to where they stay, and have it say so."""
    if not logs.is_dir():
        return
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(logs.iterdir()):
        shutil.move(path, kept / path.name)
    error.message = error.message.replace(str(logs), str(kept))
    error.hint = error.hint and error.hint.replace(str(logs), str(kept))

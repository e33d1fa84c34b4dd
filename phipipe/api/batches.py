"""Many recipes are built as one from Python."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from phipipe import backends
from phipipe.api import building, pages, workplace
from phipipe.api.building import Audience
from phipipe.api.events import OnProgress, Telling
from phipipe.api.workplace import (
    Note,
    UserPath,
    Workplace,
    engine_of,
    path_of,
    planning_on,
)
from phipipe.batch import batch as batches
from phipipe.batch import report, selection
from phipipe.batch.accept import Done
from phipipe.batch.selection import Item, Wanted
from phipipe.errors import PhipipeError, RecipeError
from phipipe.execution import events
from phipipe.files.user_paths import Kind
from phipipe.output.batch import Batch as Summary
from phipipe.output.documents import plain
from phipipe.steps import Json
from phipipe.visible import visible

TITLE = "Fidelity board"
HEAD = ("build", "state", "seconds", "why")


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a batch is made; see ``run_batch``."""

    out: Path
    keep: int = 3
    fail_fast: bool = False
    jobs: int | None = None
    on: str | None = None
    publish: bool = True


class Batch:
    """What became of the builds of a batch. ``print(batch)`` shows the table of the command.

    Attributes:
        out: the folder with packages, ``batch.json``, ``junit.xml`` and ``board.html``.
        builds: for each build its ``item``, ``state``, ``metrics``, ``before``, ``regressions``
            and ``error``.
        exit_code: what the command would end with: 0 where all went well.
    """

    def __init__(self, done: Sequence[Done], out: Path, summary: Summary) -> None:
        self.builds, self.out, self.summary = tuple(done), out, summary
        self.exit_code = report.exit_code(done)

    @property
    def error(self) -> PhipipeError | None:
        """The worst failure; None where there is none."""
        return building.worst([one.error for one in self.builds if one.error])

    @property
    def board_page(self) -> Path:
        """The page of the board over all artifacts."""
        return self.out / "board.html"

    @property
    def states(self) -> dict[str, str]:
        """What became of each build, by its name: built, cached, gated, failed, refused or
        skipped."""
        return {one.item.name: one.state for one in self.builds}

    def check(self) -> Batch:
        """This batch, if all went well.

        Raises:
            PhipipeError: the worst failure.
        """
        if self.error is not None:
            raise self.error
        return self

    def to_dict(self) -> Json:
        """The content of ``batch.json``."""
        return plain(self.summary)

    def __repr__(self) -> str:
        return f"<Batch {', '.join(f'{name}: {state}' for name, state in self.states.items())}>"

    def __str__(self) -> str:
        return visible(report.table(self.builds))

    def _repr_html_(self) -> str:
        rows = [
            (d.item.name, d.state, f"{d.seconds:.1f}", d.error.message if d.error else "")
            for d in self.builds
        ]
        return pages.table(HEAD, rows)


def run_batch(
    *paths: UserPath,
    wanted: Wanted | None = None,
    on_progress: OnProgress | None = None,
    out: UserPath = "batch",
    keep: int = 3,
    fail_fast: bool = False,
    jobs: int | None = None,
    on: str | None = None,
    publish: bool = True,
) -> Batch:
    """Build many recipes as one, and compare with what was accepted before.

    Args:
        paths: recipes, or folders of recipes.
        wanted: which of their builds, such as ``phipipe.Wanted(tags=["nightly"])``.
        on_progress: as for ``run``.
        out: where packages and reports go.
        keep: packages kept of each build.
        fail_fast: start nothing more after the first failure.
        jobs: as for ``run``.
        on: as for ``run``.
        publish: whether packages that are accepted go where their recipes publish them.

    Raises:
        RecipeError: nothing is chosen, or two builds have one name.
        StoreError: the disk has no room.
    """
    for name, count in (("jobs", jobs), ("keep", keep)):
        workplace.check_count(count, name)
    listener = Telling(on_progress)
    place = workplace.of_user(listener.note)
    folder = path_of(out, Kind.NEW_FOLDER, "the batch's folder")
    items = _chosen(paths, wanted or Wanted())
    manner = Manner(out=folder, keep=keep, fail_fast=fail_fast, jobs=jobs, on=on, publish=publish)
    started = datetime.datetime.now(datetime.UTC)
    for warning in plan(items, place, manner, listener.note):
        listener.note(f"warning: {warning}")
    return finish(build(items, place, manner, listener.audience), folder, started)


def _chosen(paths: Sequence[UserPath], wanted: Wanted) -> list[Item]:
    """The builds of the recipes at ``paths``.

    Raises:
        RecipeError: there are none, or one is wrong.
    """
    if not paths:
        raise RecipeError("a batch needs recipes", hint='phipipe.run_batch("recipes")')
    recipes = [path_of(path, Kind.EITHER, "a recipe") for path in paths]
    return selection.select(recipes, wanted, backends.OptionsOf())


def plan(items: Sequence[Item], place: Workplace, manner: Manner, note: Note) -> list[str]:
    """Plan the builds; those that cannot be get their ``error``. Returns warnings.

    Raises:
        StoreError: the disk has no room for all of it.
    """
    settings, store = place
    with planning_on(manner.on, note):
        return batches.plan(items, store, settings, manner.out, elsewhere=manner.on is not None)


def build(
    items: Sequence[Item],
    place: Workplace,
    manner: Manner,
    audience: Audience,
    stream: TextIO | None = None,
) -> list[Done]:
    """Do the steps of all that is planned, record the run, and accept what is good enough.

    Raises:
        Interrupted: somebody asked us to stop. KeyboardInterrupt passes, too.
    """
    settings, store = place
    plans = [item.plan for item in items if item.plan]
    names = [item.name for item in items]
    with (
        audience(plans) as inner,
        events.recorded(store.root, "batch", names, inner, stream) as recorder,
    ):
        for one in plans:
            recorder.advised(one.build.name, one.warnings)
        done = batches.run(
            items,
            store,
            settings,
            recorder,
            manner.out,
            jobs=manner.jobs,
            keep=manner.keep,
            fail_fast=manner.fail_fast,
            engine=engine_of(manner.on),
            publish=manner.publish,
        )
        for ended in done:
            outcome = ended.outcome
            seconds, package = (outcome.seconds, outcome.package) if outcome else (0.0, None)
            recorder.ended(ended.item.name, ended.error, seconds, package)
    return done


def finish(done: Sequence[Done], out: Path, started: datetime.datetime) -> Batch:
    """Write the reports of a batch that began at ``started`` into ``out``.

    Raises:
        StoreError: the folder cannot be written.
    """
    summary = report.summary(done, out, started, datetime.datetime.now(datetime.UTC))
    report.write(done, out, TITLE, summary)
    return Batch(done, out, summary)

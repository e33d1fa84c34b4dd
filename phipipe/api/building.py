"""What a build takes, for the command line and for Python alike: plans, a look at the machine, the
steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from phipipe.api.recipes import Recipe, Sets, opened, texts_of
from phipipe.api.workplace import (
    Names,
    Note,
    UserPath,
    Workplace,
    engine_of,
    names_of,
    path_of,
    planning_on,
)
from phipipe.errors import PhipipeError
from phipipe.execution import dispatch, events, preflight
from phipipe.execution.manner import Manner
from phipipe.execution.results import Listener, Outcome
from phipipe.files.user_paths import Kind
from phipipe.package import places
from phipipe.planning import plans as planner
from phipipe.planning.plan import Plan
from phipipe.signing import recipe_key
from phipipe.store import exports, free_space, refusals

Audience = Callable[[Sequence[Plan]], AbstractContextManager[Listener]]
"""Who hears how ``plans`` go, for as long as the block lasts."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run's steps are done, and where its packages go.

    Attributes:
        out: the folder for packages; None: none are made.
        jobs: steps side by side; None: as many as cores and memory allow.
        on: whose machines do the steps; None: this one.
        publishes: whether packages go where their recipes publish them.
    """

    out: Path | None = None
    jobs: int | None = None
    on: str | None = None
    publishes: bool = False


def planned(
    recipe: Recipe | UserPath,
    note: Note,
    *,
    sets: Sets = (),
    only: Names = (),
    on: str | None = None,
) -> list[Plan]:
    """The plans of all builds of ``recipe``.

    Raises:
        PhipipeError: all that is wrong, as one error.
    """
    elsewhere = on is not None
    with planning_on(on, note):
        if not isinstance(recipe, Recipe):
            file = recipe if isinstance(recipe, Path) else path_of(recipe, Kind.FILE, "the recipe")
            return planner.planned(file, texts_of(sets), names_of(only), elsewhere=elsewhere)
        builds = opened(recipe, sets, only).builds
        return planner.prepared(builds, elsewhere=elsewhere)


def check_room(plans: Sequence[Plan], place: Workplace, where: Where, note: Note) -> None:
    """Refuse a run that this machine surely cannot do. Where the user wants it tried, say so only.

    On other machines, each step looks for one that is large enough.

    Raises:
        StepKilled, StoreError: too little memory or disk, or a package cannot go where it has to.
        SourceError: what is to sign a package cannot be had.
        ToolchainError, SourceError: it surely cannot be published.
    """
    if where.publishes:
        _check_addresses(plans)
    if where.out is not None:
        if unsigned := recipe_key.missing([plan.build for plan in plans]):
            raise unsigned
        places.refuse_inside(where.out)
        with refusals.guard(where.out, remedy=free_space.KEEP_OUT):
            for plan in plans:
                exports.check_replaceable(where.out / plan.build.name)
    if where.on is not None:
        return
    refusal = preflight.refusal(plans, place.store, place.settings, where.out)
    if refusal is None:
        return
    if place.settings.preflight:
        raise refusal
    note(f"warning: {refusal.message}")


def _check_addresses(plans: Sequence[Plan]) -> None:
    from phipipe.publishing import builds

    builds.check(plan.build for plan in plans)


def attempt(
    command: str,
    plans: Sequence[Plan],
    place: Workplace,
    audience: Audience,
    where: Where,
    stream: TextIO | None = None,
) -> list[Outcome]:
    """Do the steps of ``plans``, and record the run as one of ``command``.

    A build's failure ends in its outcome. ``stream`` gets the events as JSON, one per line.

    Raises:
        StoreError: the cache, or the folder for packages, cannot be written.
        Interrupted: somebody asked us to stop. KeyboardInterrupt passes, too.
    """
    settings, store = place
    names = [plan.build.name for plan in plans]
    with (
        audience(plans) as inner,
        events.recorded(store.root, command, names, inner, stream) as recorder,
    ):
        for plan in plans:
            recorder.advised(plan.build.name, plan.warnings)
        manner = Manner(out=where.out, jobs=where.jobs, engine=engine_of(where.on))
        outcomes = dispatch.attempt(plans, store, settings, recorder, manner)
        if where.publishes:
            _publish(outcomes, recorder.note)
        for done in outcomes:
            recorder.ended(done.plan.build.name, done.error, done.seconds, done.package)
    return outcomes


def _publish(outcomes: Sequence[Outcome], note: Note) -> None:
    """Publish the packages of ``outcomes`` where their recipes say. A failure becomes the
    outcome's, whose package stays."""
    from phipipe.publishing import builds

    for done in outcomes:
        if done.package is not None and done.error is None:
            done.error = builds.publish(done.plan.build, done.package, note)


def worst(errors: Sequence[PhipipeError]) -> PhipipeError | None:
    """Of several failures the one with the highest exit code; None where there is none."""
    return max(errors, key=lambda error: error.exit_code, default=None)

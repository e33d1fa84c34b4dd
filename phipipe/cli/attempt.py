"""What the commands that do steps share: refusals beforehand, the steps themselves, the board
afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.cli.messages import LOG, echo, note
from phipipe.cli.workplace import Workplace, engine_of
from phipipe.errors import SourceError

if TYPE_CHECKING:
    from phipipe.board.entry import Entry
    from phipipe.execution.results import Outcome
    from phipipe.planning.plan import Plan

NARROWEST, WIDEST = 80, 160  # columns of a board


def check_room(plans: Sequence[Plan], place: Workplace, out: Path) -> None:
    """Refuse what this machine surely cannot do; say so only, where the user wants it tried.

    Raises:
        TargetError, StoreError: it has too little memory or disk.
    """
    from phipipe.execution import preflight

    refusal = preflight.refusal(plans, place.store, place.settings, out)
    if refusal is None:
        return
    if place.settings.preflight:
        raise refusal
    note(f"warning: {refusal.message}")


def attempt(
    command: str,
    plans: Sequence[Plan],
    place: Workplace,
    *,
    out: Path | None = None,
    jobs: int | None = None,
    on: str | None = None,
) -> list[Outcome]:
    """Do the steps of ``plans``, show how they go, and record the run as one of ``command``.

    Args:
        out: where packages go; None where there are none.
        jobs: steps side by side; None: what cores and memory allow.
        on: whose machines do them; None: this one.
    """
    from phipipe.cli import listeners
    from phipipe.execution import dispatch, events
    from phipipe.execution.manner import Manner

    settings, store = place
    names, stream = [plan.build.name for plan in plans], LOG.stream
    with (
        listeners.listener(plans, sys.stderr, silent=LOG.silent) as inner,
        events.recorded(store.root, command, names, inner, stream) as recorder,
    ):
        for plan in plans:
            recorder.advised(plan.build.name, plan.warnings)
        outcomes = dispatch.attempt(
            plans,
            store,
            settings,
            recorder,
            Manner(out=out, jobs=jobs, engine=engine_of(on)),
        )
        for done in outcomes:
            recorder.ended(done.plan.build.name, done.error, done.seconds, done.package)
    return outcomes


def make_board(outcomes: Sequence[Outcome], out: Path, *, quiet: bool) -> None:
    """The board of a matrix: beside the packages, in a folder named by the recipe."""
    from phipipe.board import gathering

    entries, name = gathering.of_outcomes(outcomes), outcomes[0].plan.build.recipe.name
    try:
        page = gathering.write(entries, out / name, name)
    except SourceError as error:  # variants may be evaluated on different texts on purpose
        note(f"no board: {error.message}")
        return
    if not quiet:
        show_board(entries, page)
        if all(outcome.all_cached for outcome in outcomes):
            echo("everything was cached, nothing had to be done")


def show_board(entries: Sequence[Entry], page: Path) -> None:
    """Print a board as a table, and where its ``page`` lies."""
    from phipipe.board import text

    columns = shutil.get_terminal_size((120, 24)).columns
    echo(text.table(entries, max(NARROWEST, min(WIDEST, columns))))
    advice = "\n".join(text.advice(entries))
    echo(f"\n{advice}\n\nboard    {page}\ncheck    phipipe verify PACKAGE")

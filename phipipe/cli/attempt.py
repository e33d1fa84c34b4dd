"""What the commands that do steps share: the steps before the user's eyes, the board
afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.cli.messages import LOG, echo, note
from phipipe.errors import SourceError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from phipipe.api.building import Where
    from phipipe.api.workplace import Workplace
    from phipipe.board.entry import Entry
    from phipipe.execution.results import Listener, Outcome
    from phipipe.planning.plan import Plan

NARROWEST, WIDEST = 80, 160  # columns of a board


def attempt(
    command: str, plans: Sequence[Plan], place: Workplace, where: Where | None = None
) -> list[Outcome]:
    """Do the steps of ``plans``, show how they go, and record the run as one of ``command``."""
    from phipipe.api import building

    here = where or building.Where()
    return building.attempt(command, plans, place, audience, here, LOG.stream)


def audience(plans: Sequence[Plan]) -> AbstractContextManager[Listener]:
    from phipipe.cli import listeners

    return listeners.listener(plans, sys.stderr, silent=LOG.silent)


def make_board(outcomes: Sequence[Outcome], out: Path, *, quiet: bool) -> None:
    """The board of a matrix: beside the packages, in a folder named after the recipe."""
    from phipipe.api import run_boards

    try:
        entries, page = run_boards.write_board(outcomes, out)
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

"""The board that a run of several builds leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe.board import gathering
from phipipe.board.entry import Entry
from phipipe.execution.results import Outcome
from phipipe.package import places


def write_board(outcomes: Sequence[Outcome], out: Path) -> tuple[list[Entry], Path]:
    """Write the board of a matrix beside its packages, in a folder named after the recipe.

    Returns:
        What stands on it, and the page.

    Raises:
        SourceError: the builds do not compare, as where variants are evaluated on different texts.
        StoreError: the folder cannot be written.
    """
    entries, name = gathering.of_outcomes(outcomes), outcomes[0].plan.build.recipe.name
    folder = places.of_board(out, name, [outcome.plan.build.name for outcome in outcomes])
    return entries, gathering.write(entries, folder, name)

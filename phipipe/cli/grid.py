"""Rows as a table: as wide as the terminal, plain and complete anywhere else."""

from __future__ import annotations

import io
import shutil
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from phipipe.steps import Json
from phipipe.visible import one_line

Row = Mapping[str, Json]
GAP = 2  # columns between two cells
SHORT = 20  # characters of a cell that is not folded …
KEPT = 0.6  # … where such cells leave the others their share of the width
NAME = 0.4  # of the width: a first column up to this is not folded, since people copy from it
NARROWEST = 20  # a terminal that says less is taken for this wide


class Table(str):
    """The text of a table, whose first lines, ``heads`` of them, name its columns."""

    heads: int = 0


def table(rows: Sequence[Row], *, indent: int = 0, right: Collection[str] = ()) -> Table:
    """``rows`` under the names of their columns; those in ``right`` are numbers.

    On a terminal long cells are folded, so that every line fits beside ``indent`` columns of the
    caller's. Elsewhere each row is one line.
    """
    if not rows:
        return Table("nothing yet")
    cells = [[one_line(str(row[name])) for name in rows[0]] for row in rows]
    names = [one_line(name) for name in rows[0]]
    sides = [name in right for name in rows[0]]
    plain = _plain([names, *cells], sides)
    width = terminal_width()
    if width is None or max(map(_columns, plain)) <= width - indent:
        made = Table("\n".join(plain))
        made.heads = 1
        return made
    return _folded(names, cells, sides, width - indent)


def terminal_width() -> int | None:
    """Columns of the terminal that shows standard output; None where it goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    return max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)


def _columns(line: str) -> int:
    """Columns that a terminal needs for ``line`` at most: some signs take two."""
    return sum(1 + (unicodedata.east_asian_width(sign) in "WF") for sign in line)


def _plain(lines: Sequence[Sequence[str]], sides: Sequence[bool]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(sides))]
    ways = ["rjust" if side else "ljust" for side in sides]
    return [
        (" " * GAP)
        .join(getattr(cell, way)(w) for cell, way, w in zip(line, ways, widths, strict=True))
        .rstrip()
        for line in lines
    ]


def _folded(
    names: Sequence[str], cells: Sequence[Sequence[str]], sides: Sequence[bool], width: int
) -> Table:
    """A table in ``width`` columns: long cells go on in the next line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    longest = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    short = [length for length in longest if length <= SHORT]
    keep = sum(short) + GAP * len(longest) <= width * KEPT
    grid = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0))
    copied = (
        max(_columns(cell) for cell in [names[0], *(line[0] for line in cells)]) <= width * NAME
    )
    for i, (name, side, length) in enumerate(zip(names, sides, longest, strict=True)):
        grid.add_column(
            Text(name),
            justify="right" if side else "left",
            overflow="fold",
            no_wrap=(copied and i == 0) or (keep and length <= SHORT),
        )
    for line in cells:
        grid.add_row(*map(Text, line))
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, legacy_windows=False)
    console.print(grid)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    rule = next(i for i, line in enumerate(lines) if line and not line.strip("─- "))
    made = Table("\n".join([*lines[:rule], *lines[rule + 1 :]]))
    made.heads = rule
    return made

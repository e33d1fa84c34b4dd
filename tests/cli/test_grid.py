"""Tables and outlines: as wide as the terminal, plain and complete anywhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from testing.shell import Run

from phipipe.cli import grid, tables
from phipipe.cli.grid import table

pty = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
LONG = [
    {"name": "quickstart", "path": "/somewhere/" + "deep/" * 30, "size": "1.5 GiB"},
    {"name": "b", "path": "-", "size": "20 KiB"},
]
CELLS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=60)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> object:
    """Say how wide the terminal is."""

    def set_width(width: int | None) -> None:
        monkeypatch.setattr(grid, "terminal_width", lambda: width)
        monkeypatch.setattr(tables, "terminal_width", lambda: width)

    return set_width


def letters(text: str) -> str:
    return "".join(sorted(re.sub(r"\s", "", text)))


def test_in_a_pipe_every_row_is_one_line(wide: object) -> None:
    assert callable(wide)
    wide(None)
    lines = table(LONG).splitlines()
    assert len(lines) == 3
    assert LONG[0]["path"] in lines[1]
    assert lines[2] == f"b           -{' ' * (len(LONG[0]['path']) - 1)}  20 KiB"


def test_numbers_stand_on_the_right(wide: object) -> None:
    assert callable(wide)
    for width in (None, 200, 40):
        wide(width)
        lines = table(LONG, right=["size"]).splitlines()
        assert [line for line in lines if line.endswith(" 20 KiB")]
        assert lines[0].endswith("   size")


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_on_a_terminal_no_line_is_wider_and_nothing_is_lost(wide: object, width: int) -> None:
    assert callable(wide)
    wide(width)
    made = table(LONG)
    assert max(map(len, made.splitlines())) <= width
    assert letters(made) == letters("namepathsize" + "".join("".join(row.values()) for row in LONG))
    assert made.heads == 1


def test_a_table_that_fits_looks_as_in_a_pipe(wide: object) -> None:
    assert callable(wide)
    wide(None)
    plain = table(LONG)
    wide(500)
    assert table(LONG) == plain


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.integers(30, 90))
def test_whatever_stands_in_cells_fits_and_stays(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    before = grid.terminal_width
    grid.terminal_width = lambda: width  # type: ignore[assignment]
    try:
        made = table([dict(zip("abc", row, strict=True)) for row in rows], indent=2)
    finally:
        grid.terminal_width = before
    assert "\x1b" not in made
    assert max(map(cell_len, made.splitlines())) <= width - 2
    for row in rows:
        for cell in row:
            signs = {sign for sign in grid.one_line(cell) if not sign.isspace()}
            assert signs <= set(made)


@pytest.mark.parametrize("width", [70, 100])
def test_a_name_that_people_copy_is_not_folded(wide: object, width: int) -> None:
    assert callable(wide)
    wide(width)
    name = "20261129-213035-047499-17"
    rows = [{"id": name, "started": "2026-11-29T21:30:35Z", "builds": "a-long-name, " * 9}]
    assert name in table(rows)


def test_markup_in_data_is_text(wide: object) -> None:
    assert callable(wide)
    wide(40)
    made = table([{"name": "[bold red]x[/]", "text": "[link=https://example.org]y[/link] " * 3}])
    assert "[bold red]x[/]" in made
    assert "\x1b" not in made


def test_a_cell_is_one_line_and_commands_no_terminal(wide: object) -> None:
    assert callable(wide)
    for width in (None, 30):
        wide(width)
        made = table([{"a": "one\ntwo\x1b[2J", "b": "x" * 40}])
        assert "\x1b" not in made
        assert letters("one\\ntwo\\x1b[2J" + "x" * 40 + "ab") == letters(made)


def test_an_outline_hangs_below_its_beginning(wide: object) -> None:
    assert callable(wide)
    row = {"title": "words " * 30, "n": 1, "sources": ["https://example.org/" + "a" * 90]}
    wide(60)
    lines = tables.outline(row).splitlines()
    assert lines[1].startswith("         words")
    assert [line for line in lines if len(line) > 60] == [f"  {row['sources'][0]}"]
    wide(None)
    assert len(tables.outline(row).splitlines()) == 4


def test_no_rows_are_said(wide: object) -> None:
    assert callable(wide)
    wide(80)
    assert table([]) == "nothing yet"


# On a real terminal


def on_terminal(*words: str, columns: int, env: dict[str, str] | None = None) -> str:
    """What a terminal so wide gets from ``phipipe WORDS``."""
    import pty as terminals

    ours, theirs = terminals.openpty()
    asked = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"} | (env or {})
    process = subprocess.Popen(
        [sys.executable, "-m", "phipipe", *words], stdout=theirs, stdin=theirs, env=asked
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            said += (part := os.read(ours, 65536))
        except OSError:  # the other end is closed
            break
        if not part:
            break
    os.close(ours)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")


@pty
@pytest.mark.parametrize(
    "words", [("devices",), ("explain",), ("config", "show"), ("recipes", "ls"), ("backends",)]
)
def test_listings_fit_a_narrow_terminal(words: tuple[str, ...]) -> None:
    said = on_terminal(*words, columns=60)
    bare = re.sub(r"\x1b\[\d*m", "", said)
    assert max(map(len, bare.splitlines())) <= 60
    assert said.startswith("\x1b[1m")
    piped = subprocess.run(
        [sys.executable, "-m", "phipipe", *words], capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert "\x1b" not in piped
    assert letters(bare) == letters(piped)


@pty
def test_no_color_means_plain_letters() -> None:
    assert "\x1b" not in on_terminal("devices", columns=60, env={"NO_COLOR": "1"})


def test_rich_is_imported_for_a_table_that_must_fold_alone(run: Run, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['phipipe', *sys.argv[1:]]\nfrom phipipe.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'rich' not in sys.modules"
    )
    for words in (["--help"], ["devices"], ["config", "show"]):
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)

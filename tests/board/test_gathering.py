"""Boards made from what lies on disk: packages, folders of packages, boards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from testing import documents
from testing.boards import entry, nineteen

from phipipe.board import board, gathering
from phipipe.errors import SourceError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a board of two builds."""
    gathering.write(
        [entry("small", 4.5, 0.02), entry("close", 8.5, 1e-4)], tmp_path / "board", "Two"
    )
    return tmp_path / "board"


def test_a_board_is_three_files_that_say_the_same(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"board.json", "board.md", "board.html"}
    for path in made.iterdir():
        text = path.read_bytes().decode()
        assert "\r" not in text.replace("\\r", "")
        assert "small" in text
        assert "close" in text


def test_boards_are_read_back_from_file_and_folder(made: Path) -> None:
    names = {"small", "close"}
    assert {e.name for e in gathering.of_paths([made], print)} == names
    assert {e.name for e in gathering.of_paths([made / "board.json"], print)} == names
    assert len(board.ranked(gathering.of_paths([made, made], print))) == 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere", None, "does not exist"),
        ("empty/", None, "holds neither a package nor a board"),
        ("board.json", b"{", "not valid JSON"),
        ("board.json", b"\xff\xfe", "not UTF-8"),
        ("board.json", b"[]", "no board of phipipe"),
        ("package/manifest.json", b"{}", "manifest"),
    ],
)
def test_what_is_no_board_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    given = path.parent if name.endswith("manifest.json") else path
    with pytest.raises(SourceError) as caught:
        gathering.of_paths([given], print)
    assert words in caught.value.message
    assert given.name in caught.value.message


def test_what_does_not_compare_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    entries = [entry("one"), entry("two", text_digest="c" * 64)]
    with pytest.raises(SourceError, match="evaluation text differs"):
        gathering.write(entries, tmp_path / "board", "Two")
    assert not (tmp_path / "board").exists()


def compare(*words: str | Path, expect: int = 0) -> Any:
    command = [sys.executable, "-m", "phipipe", "compare", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done


def test_the_command_prints_the_table_the_answer_and_where_the_page_is(
    made: Path, tmp_path: Path
) -> None:
    done = compare(made, "--out", tmp_path / "again")
    assert "ship small if size or answer speed matters most" in done.stdout
    assert "board.html" in done.stdout
    assert (tmp_path / "again" / "board.html").is_file()
    told = documents.fits(["compare"], compare(made, "--json", "--out", tmp_path / "again").stdout)
    assert {e["name"] for e in told["entries"]} == {"small", "close"}


def test_the_command_answers_for_every_device(tmp_path: Path) -> None:
    gathering.write(nineteen(), tmp_path / "board", "Nineteen")
    said = compare(tmp_path / "board", "--out", tmp_path / "again").stdout.splitlines()
    assert [line.partition(": ship ")[0] for line in said if ": ship " in line] == [
        "CPU (x86-64)",
        "Apple silicon, metal",
        "Intel NPU, intel-npu",
    ]


def test_the_command_says_what_to_name_instead(tmp_path: Path) -> None:
    done = compare(tmp_path, "--out", tmp_path / "out", expect=8)
    assert "name package folders" in done.stderr
    assert not (tmp_path / "out").exists()
    assert "RUN|PACKAGE" in compare(expect=2).stderr

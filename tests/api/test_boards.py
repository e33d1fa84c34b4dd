"""Boards from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import boards, small_package
from testing.shell import Run

from phipipe import Board, Package, RecipeError, SourceError
from phipipe.board import file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package.written(tmp_path / "small")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "board.json"
    entries = [boards.entry("a", bits=4.5, kld=0.03), boards.entry("b<i>", bits=8.5, kld=0.001)]
    path.write_text(file.dump(entries), "utf-8")
    return path


def test_a_board_takes_packages_paths_and_boards(folder: Path, tmp_path: Path) -> None:
    package = Package.open(folder)
    for item in (package, folder, str(tmp_path), Board(package)):
        assert [entry.name for entry in Board(item).entries] == ["small"]


def test_a_board_is_read_and_written(report: Path, tmp_path: Path) -> None:
    board = Board(report)
    assert {entry.name for entry in board.entries} == {"a", "b<i>"}
    page = board.write(tmp_path / "out", "Mine")
    assert page == tmp_path / "out" / "board.html"
    assert json.loads((tmp_path / "out" / "board.json").read_text("utf-8")) == board.to_dict()
    assert Board(tmp_path / "out").to_dict() == board.to_dict()


def test_a_board_is_what_the_command_prints(report: Path, run: Run) -> None:
    code, out, _ = run("compare", str(report), "--json")
    assert (code, json.loads(out)) == (0, Board(report).to_dict())


def test_answers_and_rows_are_data(report: Path) -> None:
    board = Board(report)
    (answer,) = board.answers
    assert {pick.aim: pick.build for pick in answer.picks}["fidelity"] == "b<i>"
    rows = {row["name"]: row for row in board.rows}
    assert rows["a"]["kld_mean"] == 0.03
    assert rows["a"]["error"] is None
    assert answer.line in str(board)


def test_a_notebook_shows_the_board_and_obeys_no_name_in_it(report: Path) -> None:
    page = Board(report)._repr_html_()
    assert "b&lt;i&gt;" in page
    assert "<i>" not in page
    assert repr(Board(report)) == "<Board of 2 builds>"


def test_builds_that_do_not_compare_are_refused(report: Path, folder: Path) -> None:
    with pytest.raises(SourceError, match="do not compare"):
        Board(report, folder)


def test_what_is_no_board_is_a_source_error(tmp_path: Path) -> None:
    for items in ((), (tmp_path,), (tmp_path / "nothing",)):
        with pytest.raises(SourceError):
            Board(*items)


def test_a_folder_that_cannot_be_written_is_said(report: Path) -> None:
    with pytest.raises(RecipeError, match=r"the board's folder.*is a file"):
        Board(report).write(report)

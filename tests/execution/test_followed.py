"""Who follows the steps reads what they write, line by line, under each step's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.workers import Bench

from phipipe import progress
from phipipe.errors import StepFailed
from phipipe.execution import watch
from phipipe.execution.watch import Watch
from phipipe.settings import Settings


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    lines: list[tuple[str, str]] = []
    progress.follow(lambda step, line: lines.append((step, line)))
    yield lines
    progress.follow(None)


def test_a_steps_lines_are_heard_native_code_and_children_included(
    tmp_path: Path, heard: list[tuple[str, str]]
) -> None:
    bench = Bench(tmp_path)
    try:
        with progress.named("board/convert"), pytest.raises(StepFailed):
            bench("speak_and_fail", word="canto")
    finally:
        bench.worker.close()
    said = {line for step, line in heard if step == "board/convert"}
    assert {"canto python é", "canto error", "canto native", "canto child"} <= said
    assert len(said) == len({line for _, line in heard})


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=8), max_size=8))
def test_no_line_is_lost_or_doubled_however_the_log_grows(parts: list[str]) -> None:
    import tempfile

    lines: list[str] = []
    progress.follow(lambda _, line: lines.append(line))
    try:
        with tempfile.TemporaryDirectory() as folder:
            seen = Watch(Path(folder), Settings.read({}), lambda *report: None)
            for part in parts:
                with (Path(folder) / "log.txt").open("ab") as log:
                    log.write(part.encode())
                seen.report()
            seen.end()
    finally:
        progress.follow(None)
    whole = "".join(parts).encode().split(b"\n")
    shown = [line.rstrip().rpartition(b"\r")[2].decode() for line in whole]
    assert lines == [line for line in shown if line]


def test_a_line_without_end_is_heard_in_pieces(
    tmp_path: Path, heard: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHUNK", 4)
    (tmp_path / "log.txt").write_text("abcdefghij", "utf-8")
    Watch(tmp_path, Settings.read({}), lambda *report: None).report()
    assert "".join(line for _, line in heard).startswith("abcdefgh")


def test_without_a_follower_no_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("a\n", "utf-8")
    seen = Watch(tmp_path, Settings.read({}), lambda *report: None)
    seen.report()
    lines: list[str] = []
    progress.follow(lambda _, line: lines.append(line))
    seen.end()
    progress.follow(None)
    assert lines == ["a"]

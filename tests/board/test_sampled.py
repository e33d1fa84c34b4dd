"""Boards of builds that scored different windows of one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from testing.boards import entry

from phipipe.board import board, columns, file, html, text
from phipipe.board.entry import Entry, complaint
from phipipe.errors import SourceError
from phipipe.evaluate import sampling

HARD, EASY = 5, 1  # windows; what a build loses on them


def scored(name: str, windows: Sequence[int], loss: float = 1.0, **changed: Any) -> Entry:
    """A build that loses ``loss`` hundredths of a nat on a usual window, and more on hard ones."""
    klds = [0.01 * loss * (3 if window >= HARD else 1) for window in windows]
    figures = {key: [0.5] * len(windows) for key in sampling.FIGURES} | {"kld": klds}
    made = entry(name, kld=sum(klds) / len(klds), **changed)
    return replace(
        made,
        scored=512 * len(windows),
        stopped="decided",
        windows=list(windows),
        by_window=figures,
    )


def test_builds_are_ranked_over_the_windows_that_all_of_them_scored() -> None:
    # it loses less everywhere, and scored the hard windows, too
    better = scored("better", [0, 1, 2, 3, 5, 6], loss=0.9, size=2.0)
    lucky = scored("lucky", [0, 1, 2, 3], loss=1.0, size=2.1)
    assert better.kld > lucky.kld
    entries = [better, lucky]
    assert board.common(entries) == (0, 1, 2, 3)
    assert board.paired(entries) == pytest.approx({"better": 0.009, "lucky": 0.01})
    (answer,) = board.answers(entries)
    assert answer.front == ("better",)
    assert dict(answer.behind) == {"lucky": "better"}
    assert {pick.build for pick in answer.picks} == {"better"}
    alone = [replace(e, windows=[], by_window={}, scored=0) for e in entries]
    (as_they_are,) = board.answers(alone)
    assert set(as_they_are.front) == {"better", "lucky"}


def test_the_board_says_on_how_many_tokens_each_figure_rests() -> None:
    entries = [scored("a", [0, 1, 2, 3]), scored("b", [0, 1, 2, 3, 5, 6], size=3.0)]
    shown = text.table(entries, width=160)
    assert "2,048" in shown
    assert "3,072" in shown
    assert "Ranked by the KL divergence over the 2,048 tokens that all builds scored." in shown
    page = html.render(entries)
    assert "up to 4,096 tokens of" in page
    assert "2,048 of at most 4,096 tokens scored: every gate decided" in page
    assert "tokens scored" in text.markdown(entries)
    alike = [scored("a", [0, 1]), scored("b", [0, 1], size=3.0)]
    assert "1,024" in text.table(alike, width=160)
    assert "Ranked by" not in text.table(alike, width=160)


def test_a_board_of_whole_scores_looks_as_it_did() -> None:
    entries = [entry("a"), entry("b", size=3.0)]
    assert columns.columns(entries) == columns.COLUMNS
    assert board.paired(entries) == {}
    assert "tokens scored" not in html.render(entries)


def test_windows_survive_the_boards_file() -> None:
    entries = [scored("a", [3, 1]), entry("b", size=3.0)]
    assert file.load(file.dump(entries)) == board.ranked(entries)


def test_builds_without_a_window_in_common_do_not_compare() -> None:
    board.check_comparable([scored("a", [0, 1]), scored("b", [1, 2], tokens=8192)])
    with pytest.raises(SourceError, match="no part of the text was scored by all"):
        board.check_comparable([scored("a", [0]), scored("b", [1])])
    with pytest.raises(
        SourceError, match=r"number of tokens differs: .* window by window, .* 4096"
    ):
        board.check_comparable([scored("a", [0]), entry("b")])


def test_windows_that_do_not_belong_together_are_damage() -> None:
    good = scored("a", [0, 1])
    assert complaint(good) is None
    for changed in ({"windows": [0, 0]}, {"windows": [0]}, {"by_window": {}}):
        bad = replace(good, **changed)
        assert complaint(bad) == "has figures of windows that do not belong together"

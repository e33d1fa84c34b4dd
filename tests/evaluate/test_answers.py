"""Answers beside the original's: loops, ends, and the shares that gates look at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.evaluate import answers
from phipipe.evaluate.answers import LEAST_TOKENS, REPEATS, cycle, judge

SMALL = st.lists(st.integers(0, 2), max_size=60)


def by_definition(ids: Sequence[int]) -> int:
    for block in range(1, len(ids)):
        tail = ids[-max(REPEATS * block, LEAST_TOKENS) :]
        enough = len(tail) == max(REPEATS * block, LEAST_TOKENS)
        if enough and all(a == b for a, b in zip(tail, tail[block:], strict=False)):
            return block
    return 0


@settings(max_examples=300, deadline=None)
@given(SMALL, st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12))
def test_a_cycle_is_the_shortest_block_that_the_end_repeats(
    start: list[int], block: list[int], times: int
) -> None:
    ids = start + block * times
    assert cycle(ids) == by_definition(ids)


@settings(max_examples=100, deadline=None)
@given(SMALL, st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 29))
def test_whatever_goes_round_is_found(start: list[int], block: list[int], cut: int) -> None:
    ids = start + block * (REPEATS + LEAST_TOKENS) + block[:cut]
    assert 0 < cycle(ids) <= len(block)


@pytest.mark.parametrize(
    ("ids", "length"),
    [
        ([], 0),
        ([7] * 23, 0),
        ([7] * 24, 1),
        ([1, 2] * 12, 2),
        ([*range(40)] * 2, 0),
        ([*range(40)] * 3, 40),
        ([9, *range(40), *range(40), *range(40)], 40),
        ([*range(40)] * 3 + [99], 0),
        ([*range(100)], 0),
    ],
)
def test_three_times_and_24_tokens_are_a_loop(ids: list[int], length: int) -> None:
    assert cycle(ids) == length


def test_an_answer_that_ends_by_itself_is_no_loop() -> None:
    assert not judge([7] * 40, "haha", ended=True).loops
    assert judge([7] * 40, "haha", ended=False).loops


@pytest.mark.parametrize(
    ("ids", "ended"),
    [
        ([5, 6, 2], True),  # a token that ends
        ([5, 6, 6, 2], True),  # in the last place
        ([5, 6, 6, 6], False),
        ([5, 9], True),  # the runtime knows one more, which shows nothing
        ([5, 6], False),  # the cache is full
        ([], False),
    ],
)
def test_an_answer_ends_with_what_ends_it(ids: list[int], ended: bool) -> None:
    def decode(some: Sequence[int]) -> str:
        return "".join("x" for one in some if one < 9)

    assert answers.ends(ids, 4, [2], decode) is ended


GOOD = judge([1, 2, 3], "ok", ended=True)
ENDLESS = judge([1, 2] * 20, "and so on", ended=False)
LONG = judge([*range(1, 41)], "a long one", ended=False)
EMPTY = judge([9], " ", ended=True)
CALL = judge([1, 5], "{}", ended=True, call=True)
NO_CALL = judge([1, 6], "so", ended=True, call=False)


def told(*pairs: tuple[answers.Judged, answers.Judged]) -> list[answers.Reply]:
    return [
        answers.reply(i, original, here, ("original", "here"))
        for i, (original, here) in enumerate(pairs, 1)
    ]


def test_shares_count_what_the_original_does_well() -> None:
    replies = told((GOOD, GOOD), (GOOD, ENDLESS), (ENDLESS, ENDLESS), (LONG, EMPTY), (EMPTY, EMPTY))
    metrics, errors, asked = answers.figures(replies, has_tools=False)
    assert (metrics["ended"], asked["ended"]) == (pytest.approx(2 / 3), 3)
    assert (metrics["loops"], asked["loops"]) == (0.25, 4)
    assert (metrics["empty"], asked["empty"]) == (0.25, 4)
    assert (metrics["answer_flips"], asked["answer_flips"]) == (0.2, 5)
    assert metrics["first_divergence"] == (3 + 2 + 40 + 0 + 1) / 5
    assert errors["loops"] == pytest.approx((0.25 * 0.75 / 3) ** 0.5)
    assert "tool_json_valid" not in metrics
    assert answers.failed(replies) == {
        "ended": [2],
        "loops": [2],
        "empty": [4],
        "answer_flips": [4],
    }


def test_calls_count_where_the_original_calls() -> None:
    replies = told((CALL, CALL), (CALL, NO_CALL), (NO_CALL, NO_CALL), (GOOD, GOOD))
    metrics, _, asked = answers.figures(replies, has_tools=True)
    assert (metrics["tool_json_valid"], asked["tool_json_valid"]) == (0.5, 2)
    assert answers.failed(replies)["tool_json_valid"] == [2]


def test_an_original_that_does_nothing_well_fails_no_build() -> None:
    replies = told((ENDLESS, ENDLESS), (judge([9] * 40, "", ended=False), ENDLESS))
    metrics, errors, asked = answers.figures(replies, has_tools=True)
    perfect = {name: metrics[name] for name in ("ended", "loops", "empty", "tool_json_valid")}
    assert perfect == {"ended": 1.0, "loops": 0.0, "empty": 0.0, "tool_json_valid": 1.0}
    assert asked["ended"] == 0
    assert "ended" not in errors


JUDGED = st.builds(
    judge,
    st.lists(st.integers(0, 3), max_size=40),
    st.sampled_from(["", "x"]),
    ended=st.booleans(),
    call=st.sampled_from([None, True, False]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(JUDGED, JUDGED), min_size=1, max_size=8), st.booleans())
def test_shares_are_shares_and_the_original_itself_is_perfect(
    pairs: list[tuple[answers.Judged, answers.Judged]], tools: bool
) -> None:
    metrics, errors, asked = answers.figures(told(*pairs), tools)
    assert all(0 <= value <= 1 for name, value in metrics.items() if name != "first_divergence")
    assert all(error >= 0 for error in errors.values())
    assert metrics.keys() == asked.keys()
    same, _, _ = answers.figures(told(*[(one, one) for one, _ in pairs]), tools)
    empty_handed = any(not one.ids for one, _ in pairs)
    for name, perfect in answers.PERFECT.items():
        assert same.get(name, perfect) == perfect or (name == "answer_flips" and empty_handed)

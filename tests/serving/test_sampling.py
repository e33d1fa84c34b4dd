"""Drawing tokens: as likely as they are, and the same for the same seed."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.errors import StepFailed
from phipipe.serving.sampling import chooser

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def drawn(temperature: float, top_p: float, count: int = 4000) -> dict[int, float]:
    choose = chooser(temperature, top_p, 7)
    assert choose is not None
    counts = collections.Counter(choose(LOGITS) for _ in range(count))
    return {token: number / count for token, number in counts.items()}


def test_without_temperature_or_share_nothing_is_drawn() -> None:
    assert chooser(0, 1, 3) is None
    assert chooser(0.7, 0, 3) is None


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    found = drawn(1.0, 1.0)
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert found[token] == pytest.approx(share, abs=4 * math.sqrt(share / 4000))


def test_a_temperature_of_a_half_squares_what_is_likely() -> None:
    assert drawn(0.5, 1.0)[0] == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.03)


def test_the_nucleus_holds_the_fewest_tokens_that_reach_the_share() -> None:
    assert set(drawn(1.0, 0.5)) == {0}
    assert set(drawn(1.0, 0.79)) == {0, 1}
    assert set(drawn(1.0, 0.9)) == {0, 1, 2}


def test_a_seed_draws_the_same_and_no_seed_another() -> None:
    def row(seed: int | None) -> list[int]:
        choose = chooser(1.0, 0.95, seed)
        assert choose is not None
        return [choose(LOGITS) for _ in range(40)]

    assert row(3) == row(3)
    assert row(3) != row(4)
    assert row(None) != row(None)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.floats(1e-300, 2),
    st.floats(1e-9, 1),
)
def test_any_logits_give_one_of_their_tokens(
    logits: list[float], temperature: float, top_p: float
) -> None:
    choose = chooser(temperature, top_p, 1)
    assert choose is not None
    assert 0 <= choose(np.array(logits, np.float32)) < len(logits)


def test_logits_that_are_no_numbers_are_the_models_fault() -> None:
    choose = chooser(1.0, 1.0, 1)
    assert choose is not None
    with pytest.raises(StepFailed, match="no numbers"):
        choose(np.array([1.0, math.nan], np.float32))

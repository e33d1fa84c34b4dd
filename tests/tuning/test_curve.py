"""The best choice at every size, against all choices that there are."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.tuning import curve
from phipipe.tuning.curve import Choice, Curve, Option, Point

OPTIONS = st.builds(
    lambda size, loss: Option(stored="Q", size_bytes=size, loss=loss),
    st.integers(0, 1000),
    st.floats(0, 10),
)
CURVES = st.dictionaries(
    st.sampled_from("abcd"), st.lists(OPTIONS, min_size=1, max_size=4), min_size=1
).map(Curve)
BUDGETS = st.integers(0, 4000)
NOISE = 1e-9  # of sums of floats


def every(made: Curve) -> list[Choice]:
    return [
        dict(zip(made.groups, options, strict=True)) for options in product(*made.groups.values())
    ]


def largest_gain(made: Curve) -> float:
    """What one step down a hull takes away, at most."""
    steps = [
        start.loss - end.loss
        for options in made.groups.values()
        for start, end in pairwise(curve.hull(options))
    ]
    return max(steps, default=0.0)


@given(CURVES, BUDGETS)
def test_a_budget_is_never_exceeded_and_used_where_anything_fits(made: Curve, budget: int) -> None:
    chosen = made.within(budget)
    fitting = [one for one in every(made) if curve.point(one).size_bytes <= budget]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert curve.point(chosen).size_bytes <= budget
        assert all(chosen[name] in options for name, options in made.groups.items())


@given(CURVES, BUDGETS)
def test_no_choice_is_better_by_more_than_one_step(made: Curve, budget: int) -> None:
    chosen = made.within(budget)
    if chosen is not None:
        losses = [
            found.loss for found in map(curve.point, every(made)) if found.size_bytes <= budget
        ]
        assert curve.point(chosen).loss <= min(losses) + largest_gain(made) + NOISE


@given(CURVES, BUDGETS, st.integers(0, 1000))
def test_a_larger_budget_never_loses_more(made: Curve, budget: int, more: int) -> None:
    small, large = made.within(budget), made.within(budget + more)
    if small is not None:
        assert large is not None
        assert curve.point(large).loss <= curve.point(small).loss + NOISE


@given(CURVES)
def test_nothing_beats_the_points_of_the_curve(made: Curve) -> None:
    points = list(made.points())
    assert points[0] == curve.point(made.smallest)
    for left, right in pairwise(points):
        assert left.size_bytes < right.size_bytes
        assert left.loss >= right.loss - NOISE
    for one in points:
        chosen = made.within(one.size_bytes)
        assert chosen is not None
        assert curve.point(chosen).loss == pytest.approx(one.loss, abs=NOISE)
        there = [f.loss for f in map(curve.point, every(made)) if f.size_bytes <= one.size_bytes]
        assert one.loss <= min(there) + NOISE


@given(CURVES, st.floats(0, 40))
def test_a_loss_is_reached_by_the_first_point_that_has_it(made: Curve, loss: float) -> None:
    chosen = made.reaching(loss)
    reached = [one for one in made.points() if one.loss <= loss]
    assert (chosen and curve.point(chosen)) == (reached[0] if reached else None)


@given(CURVES)
def test_the_loss_of_each_choice_on_the_curve_can_be_reached(made: Curve) -> None:
    for one in made.points():
        chosen = made.within(one.size_bytes)
        assert chosen is not None
        assert made.reaching(curve.point(chosen).loss) is not None
        assert made.reaching(one.loss) is not None


@given(st.lists(OPTIONS, min_size=1, max_size=8))
def test_a_hull_falls_ever_less_steeply(options: list[Option]) -> None:
    kept = curve.hull(options)
    assert kept[0].size_bytes == min(one.size_bytes for one in options)
    assert kept[-1].loss == min(one.loss for one in options)
    slopes = [(a.loss - b.loss) / (b.size_bytes - a.size_bytes) for a, b in pairwise(kept)]
    assert all(slope > 0 for slope in slopes)
    assert all(left >= right - NOISE for left, right in pairwise(slopes))


def test_a_small_example() -> None:
    made = Curve(
        {
            "a": [option(10, 1.0), option(20, 0.1), option(15, 0.9)],
            "b": [option(10, 0.5), option(12, 0.3)],
        }
    )
    assert made.smallest == {"a": option(10, 1.0), "b": option(10, 0.5)}
    assert list(made.points()) == [point(20, 1.5), point(22, 1.3), point(32, 0.4)]
    assert made.within(19) is None
    assert made.within(31) == {"a": option(10, 1.0), "b": option(12, 0.3)}  # 15 is on no hull
    assert made.within(32) == {"a": option(20, 0.1), "b": option(12, 0.3)}
    assert made.reaching(0.3) is None


def option(size: int, loss: float) -> Option:
    return Option(stored="Q", size_bytes=size, loss=loss)


def point(size: int, loss: float) -> Point:
    return Point(size_bytes=size, loss=pytest.approx(loss))

"""What built files say of predictions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.tuning.curve import Point
from phipipe.tuning.fit import FLATTEST, STEEPEST, Fit, Measured

LOSSES = st.floats(1e-6, 10)
# Files whose figures rise with what was predicted, far enough apart to tell a power from.
LADDERS = st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.01, 6)), min_size=1, max_size=5).map(
    lambda steps: [file(math.exp(p), math.exp(k)) for p, k in rising(steps)]
)


def rising(steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    predicted, measured, places = -12.0, -12.0, []
    for one, other in steps:
        predicted, measured = predicted + one, measured + other
        places.append((predicted, measured))
    return places


def file(loss: float, kld: float, predicted_bytes: int = 100, size_bytes: int = 110) -> Measured:
    predicted = Point(size_bytes=predicted_bytes, loss=loss)
    return Measured(predicted=predicted, size_bytes=size_bytes, kld=kld)


@given(LOSSES, st.floats(0.1, 10))
def test_without_files_the_factor_of_the_checks_counts(loss: float, factor: float) -> None:
    fit = Fit((), factor)
    assert fit.kld(loss) == pytest.approx(factor * loss)
    assert fit.loss(fit.kld(loss)) == pytest.approx(loss, rel=1e-6)
    assert fit.beside(Point(size_bytes=5, loss=loss)) == 0


@given(LOSSES, LOSSES, LOSSES)
def test_of_one_file_the_factor_is_taken(loss: float, kld: float, other: float) -> None:
    fit = Fit([file(loss, kld)])
    assert fit.kld(loss) == pytest.approx(kld)
    assert fit.kld(other) / other == pytest.approx(kld / loss)


@given(LADDERS)
def test_the_curve_goes_through_every_file(files: list[Measured]) -> None:
    fit = Fit(files)
    for one in files:
        assert fit.kld(one.predicted.loss) == pytest.approx(one.kld)


@given(LADDERS, st.lists(st.floats(-14, 4), min_size=2, max_size=20))
def test_more_loss_is_never_predicted_to_be_closer(
    files: list[Measured], places: list[float]
) -> None:
    fit = Fit(files)
    klds = [fit.kld(math.exp(place)) for place in sorted(places)]
    assert all(left <= right * (1 + 1e-9) for left, right in pairwise(klds))


@given(LADDERS, st.floats(-14, 3))
def test_loss_turns_kld_round(files: list[Measured], place: float) -> None:
    fit = Fit(files)
    assert fit.kld(fit.loss(fit.kld(math.exp(place)))) == pytest.approx(
        fit.kld(math.exp(place)), rel=1e-5
    )


@pytest.mark.parametrize(("kld", "power"), [(0.101, FLATTEST), (0.2, 1.0), (9.0, STEEPEST)])
def test_beyond_all_files_the_power_has_bounds(kld: float, power: float) -> None:
    fit = Fit([file(0.1, 0.1), file(0.2, kld)])
    assert fit.kld(0.8) == pytest.approx(kld * 4**power)


def test_files_that_are_alike_suggest_no_power() -> None:
    assert Fit([file(0.1, 0.1), file(0.101, 0.2)]).kld(0.2) == pytest.approx(0.2 * 0.2 / 0.101)


@pytest.mark.parametrize("kld", [0.0, 1e-7])
def test_nothing_lost_is_no_failure(kld: float) -> None:
    fit = Fit([file(0.0, kld), file(0.1, 0.2)])
    assert fit.kld(0.0) == pytest.approx(kld)
    assert fit.kld(0.1) == pytest.approx(0.2)
    assert math.isfinite(fit.loss(0.1))


@given(st.lists(st.builds(file, st.floats(0, 10), st.floats(0, 10)), max_size=4), LOSSES)
def test_any_files_give_finite_figures(files: list[Measured], loss: float) -> None:
    fit = Fit(files)
    assert 0 <= fit.kld(loss) < math.inf
    assert 0 < fit.loss(loss) < math.inf


def test_the_nearest_file_says_what_lies_beside() -> None:
    fit = Fit([file(1, 1, 100, 110), file(0.5, 0.5, 200, 230)])
    sizes = {100: 10, 120: 10, 180: 30, 900: 30}
    assert {s: fit.beside(Point(size_bytes=s, loss=0.7)) for s in sizes} == sizes

"""When windows are enough: error rates by simulation, bounds by their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.evaluate import fidelity, gates, sequential
from phipipe.evaluate.sequential import PROMISED, SPENT, Enough

TRIALS = 10_000
Doubles = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Doubles]


def log_normal(sigma: float) -> tuple[Draw, float]:
    return lambda random, shape: np.exp(sigma * random.normal(size=shape)), math.exp(sigma**2 / 2)


def shifted(sigma: float) -> tuple[Draw, float]:
    draw, mean = log_normal(sigma)
    return lambda random, shape: draw(random, shape) - 0.5, mean - 0.5


# Mean divergences of 16 windows of a trained model, of two builds with 4 bits, over their mean.
MEASURED = (
    (
        0.73,
        0.78,
        0.79,
        0.83,
        0.83,
        0.83,
        0.84,
        0.93,
        0.95,
        0.96,
        1.02,
        1.03,
        1.03,
        1.39,
        1.41,
        1.67,
    ),
    (0.75, 0.79, 0.81, 0.82, 0.83, 0.84, 0.84, 0.86, 0.89, 1.0, 1.0, 1.0, 1.1, 1.34, 1.4, 1.75),
)


def measured(windows: Sequence[float]) -> tuple[Draw, float]:
    """Drawn from windows that were measured, each a little off."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> Doubles:
        return random.choice(windows, shape) * random.normal(1, 0.03, shape)

    return draw, float(np.mean(windows))


def rare(share: float, factor: float) -> tuple[Draw, float]:
    """Some windows are ``factor`` times as bad as the others, which vary by a seventh."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> Doubles:
        worse = np.where(random.random(shape) < share, factor, 1.0)
        return worse * np.exp(0.15 * random.normal(size=shape))

    return draw, (1 + share * (factor - 1)) * math.exp(0.15**2 / 2)


SIGNED = ("normal", "t3", "shifted")
DRAWN: dict[str, tuple[Draw, float]] = {
    "narrow": log_normal(0.1),
    "usual": log_normal(0.3),
    "skewed": log_normal(0.6),
    "heavy": log_normal(1.0),
    "exponential": (lambda random, shape: random.exponential(size=shape), 1.0),
    "measured 1": measured(MEASURED[0]),
    "measured 2": measured(MEASURED[1]),
    "rare": rare(0.2, 2.0),
    "normal": (lambda random, shape: random.normal(0.1, 0.05, shape), 0.1),
    "t3": (lambda random, shape: 0.1 + 0.05 * random.standard_t(3, shape), 0.1),
    "shifted": shifted(0.3),
}


def early(values: Doubles, limit: float, *, positive: bool) -> tuple[Doubles, Doubles, Doubles]:
    """Of each trial of [trials, windows]: 1 or 0, whether a gate `max: limit` was passed at the
    first look that decided it, NaN where none did; the mean then; after how many windows."""
    count = values.shape[1]
    looks = sequential.looks(count)
    passed, mean, at = (np.full(len(values), np.nan) for _ in range(3))
    for n in looks:
        level = SPENT / len(looks)
        low, high = sequential.bounds(values[:, :n], level, positive=positive)
        now = np.isnan(passed) & ((high <= limit) | (low > limit))
        passed[now] = (high <= limit)[now]
        mean[now] = values[now, :n].mean(1)
        at[now] = n
    return passed, mean, at


@pytest.mark.parametrize("windows", [8, 16, 64])
@pytest.mark.parametrize("name", DRAWN)
def test_at_most_one_verdict_in_a_hundred_is_wrong(name: str, windows: int) -> None:
    draw, mean = DRAWN[name]
    values = draw(np.random.default_rng(20_261), (TRIALS, windows))
    for factor in (0.8, 0.999, 1.001, 1.25):  # a limit that is hard to miss, and one at the mean
        passed, _, _ = early(values, mean * factor, positive=name not in SIGNED)
        wrong = passed == (0.0 if factor > 1 else 1.0)
        assert wrong.mean() <= PROMISED, factor


@pytest.mark.parametrize("name", ["usual", "skewed", "normal", "shifted"])
def test_an_early_verdict_is_that_of_all_windows(name: str) -> None:
    draw, mean = DRAWN[name]
    values = draw(np.random.default_rng(7), (TRIALS, 8))
    for factor in (0.7, 0.95, 1.05, 1.5):
        passed, _, _ = early(values, mean * factor, positive=name not in SIGNED)
        whole = values.mean(1) <= mean * factor
        assert (np.isfinite(passed) & (passed != whole)).mean() <= PROMISED


@pytest.mark.parametrize("name", DRAWN)
def test_the_mean_at_an_early_verdict_passes_or_fails_alike(name: str) -> None:
    draw, mean = DRAWN[name]
    values = draw(np.random.default_rng(3), (TRIALS, 8))
    for factor in (0.3, 0.9, 1.1, 3.0):
        passed, then, _ = early(values, mean * factor, positive=name not in SIGNED)
        decided = np.isfinite(passed)
        assert ((then[decided] <= mean * factor) == passed[decided]).all()


def test_a_clear_gate_is_decided_early() -> None:
    draw, mean = DRAWN["usual"]
    values = draw(np.random.default_rng(5), (TRIALS, 8))
    passed, _, at = early(values, 3 * mean, positive=True)
    assert (passed == 1).mean() > 0.9
    assert np.nanmedian(at) <= 6


def test_the_promise_would_not_hold_without_the_bound_for_skewed_values() -> None:
    draw, mean = DRAWN["heavy"]
    values = draw(np.random.default_rng(20_261), (TRIALS, 16))
    passed, _, _ = early(values, 0.999 * mean, positive=False)
    assert (passed == 1).mean() > 2 * PROMISED


def test_looks_are_planned_and_never_at_the_end() -> None:
    assert sequential.looks(4) == ()
    assert sequential.looks(8) == (4, 5, 6, 7)
    for count in (9, 64, 1000):
        looks = sequential.looks(count)
        assert looks[0] == sequential.FIRST_LOOK
        assert list(looks) == sorted(set(looks))
        assert looks[-1] < count
    assert len(sequential.looks(1000)) < 60


@pytest.mark.parametrize(
    ("level", "degrees", "t"),  # tables of Student's t
    [
        (0.025, 1, 12.706),
        (0.005, 3, 5.841),
        (0.025, 10, 2.228),
        (0.0005, 7, 5.408),
        (0.05, 60, 1.671),
    ],
)
def test_critical_values_are_those_of_tables(level: float, degrees: int, t: float) -> None:
    assert sequential.critical(level, degrees) == pytest.approx(t, abs=5e-4)
    assert sequential.tail(t, degrees) == pytest.approx(level, rel=2e-3)


# --- gates


def rows(
    kld: float = 0.02, spread: float = 0.1, windows: int = 4, positions: int = 400, seed: int = 0
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Positions of windows whose mean divergences vary by the share ``spread``."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(windows):
        level = kld * math.exp(spread * random.normal())
        nll = random.exponential(2.0, positions)
        found = {
            "kld": level * random.exponential(1.0, positions),
            "top1": (random.random(positions) < 0.95).astype(float),
            "nll": nll + random.normal(0.01, 0.05, positions),
            "nll_baseline": nll,
            "dp": random.normal(0, 0.02, positions),
        }
        made.append({name: values.astype(np.float32) for name, values in found.items()})
    return made


def plain(name: str, made: list[dict[str, npt.NDArray[np.float32]]]) -> float:
    positions = {key: np.stack([row[key] for row in made]) for key in made[0]}
    return fidelity.summarise(positions)[0][name]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["kld_mean", "top1", "ppl", "ppl_ratio", "dp_rms", "kld_max"]),
    st.sampled_from(["min", "max"]),
    st.floats(0.05, 20),
    st.integers(0, 10_000),
    st.integers(4, 7),
)
def test_a_decided_gate_is_decided_as_the_reported_figure_is(
    name: str, side: str, factor: float, seed: int, windows: int
) -> None:
    made = rows(seed=seed, windows=windows)
    value = plain(name, made)
    limits = {side: value * factor}
    said = Enough(gates={name: limits}, count=8).verdict(name, limits, made)
    assert said in (None, gates.verdict(name, value, limits).passed)


@pytest.mark.parametrize(
    ("name", "limits", "expected"),
    [
        ("kld_mean", {"max": 0.2}, True),
        ("kld_mean", {"max": 0.004}, False),
        ("kld_mean", {"max": 0.021}, None),
        ("kld_mean", {"min": 0.001, "max": 0.2}, True),
        ("kld_mean", {"min": 0.02, "max": 0.2}, None),
        ("top1", {"min": 0.8}, True),
        ("top1", {"min": 0.999}, False),
        ("top1", {"min": 0.95}, None),
        ("ppl", {"max": 1e9}, True),
        ("ppl", {"max": 0}, False),
        ("ppl_ratio", {"max": 1.2}, True),
        ("ppl_ratio", {"max": 0.9}, False),
        ("dp_rms", {"max": 0.2}, True),
        ("dp_rms", {"max": 0.001}, False),
        ("dp_rms", {"max": -1}, False),
        ("kld_max", {"max": 0.05}, False),
        ("kld_max", {"max": 50}, None),
        ("kld_max", {"min": 0.01}, True),
        ("kld_max", {"min": 0.01, "max": 50}, None),
        ("kld_p99", {"max": 50}, None),
        ("kld_median", {"max": 50}, None),
    ],
)
def test_what_seven_windows_decide(
    name: str, limits: dict[str, float], expected: bool | None
) -> None:
    assert Enough(gates={name: limits}, count=8).verdict(name, limits, rows(windows=7)) is expected


def test_windows_that_agree_throughout_prove_no_more_than_their_positions() -> None:
    made = rows()
    for row in made:
        row["top1"][:] = 1
    for limit, expected in ((0.999, None), (0.9, True)):
        limits = {"min": limit}
        assert Enough(gates={"top1": limits}, count=8).verdict("top1", limits, made) is expected


def test_scoring_ends_where_gates_are_decided_and_the_mean_is_known() -> None:
    far, near = {"kld_mean": {"max": 0.2}}, {"kld_mean": {"max": 0.021}}
    steady, unsteady = rows(spread=0.02), rows(spread=0.5)
    assert Enough(gates=far, count=8)(steady)
    assert not Enough(gates=near, count=8)(steady)
    assert not Enough(gates=far, count=8)(unsteady)
    assert not Enough(gates=far, count=4)(steady)  # the last are scored in any case
    assert not Enough(gates=far, count=8)(steady[:3])
    assert Enough(gates={"size_gib": {"max": 1}, "decode_tokens_per_s": {"min": 9}}, count=8)(
        steady
    )
    assert not Enough(gates={**far, "kld_p99": {"max": 1}}, count=8)(steady)


def test_a_divergence_of_arithmetic_alone_needs_no_precise_mean() -> None:
    assert Enough(gates={}, count=8)(rows(kld=1e-7, spread=1.5))
    assert not Enough(gates={}, count=8)(rows(kld=1e-4, spread=1.5))
    nothing = rows()
    for row in nothing:
        row["kld"][:] = 0
    assert Enough(gates={"kld_mean": {"max": 0}}, count=8)(nothing)


def test_the_error_counts_no_less_than_independent_positions_have() -> None:
    made = rows(windows=4)
    alike = [{name: values.copy() for name, values in made[0].items()} for _ in made]
    mean, error = sequential.standard_error(alike)
    whole = np.stack([row["kld"] for row in alike])
    assert mean == pytest.approx(float(whole.mean()))
    assert error == pytest.approx(float(whole.std(ddof=1)) / math.sqrt(whole.size), rel=1e-3)
    assert sequential.standard_error(made[:1])[1] == math.inf

"""When enough windows are scored: every gate is decided, and the mean is known to 5 %.

**What is drawn.** Windows come in an order that is shuffled once and for all (``sampling.order``),
so that those scored by any time are a simple random sample of the text's windows, whatever it is
about where. Positions within a window depend on each other, windows hardly do: a window is the
unit, and the mean over positions the mean over windows, which all have as many positions (cluster
sampling; Cochran, Sampling Techniques, 1977, ch. 9).

**What is bounded.** Gates on means over positions: ``kld_mean`` (and ``kld_run`` where it is that),
``top1``, ``ppl``, ``ppl_ratio``, ``dp_rms``, each as a mean of some quantity with a limit. At each
look a one-sided bound of Student's t (1908) has to clear the limit. Of a quantity that cannot be
negative, the bound of Cox's method for log-normal means in its form with t (Olsson, J. Statistics
Education 13(1), 2005) has to clear it, too: means of few skewed values lie low, and so do their
spreads, which would pass what should fail. Neither trusts windows that agree by chance, as those do
of which the rare bad ones are still to come: the spread between windows counts as no less than
independent positions would have, and no less than ``SPREAD`` of the mean, with normal quantiles.

**How often.** Looks are planned (``looks``), and each spends an equal share of ``SPENT``
(alpha-spending: Lan & DeMets, Biometrika 70, 1983); so do all limits (Bonferroni), so that the
chance of a wrong verdict adds up over looks and limits whatever their dependence. ``PROMISED`` is
more than six times ``SPENT``: both bounds are exact for their own distributions at best. By
simulation the promise holds for log-normal windows up to a sigma of 1, for windows drawn from those
of trained models with 4 bits, and where one window in five is twice as bad as the others. Where
one in ten is three times as bad, up to 4 % of verdicts are wrong if the limit is at the very mean.

A gate is decided where its bound clears the limit at the very look that ends the scoring, so the
reported mean, which lies within the bounds, passes or fails alike. What is undecided at the end is
judged by the plain figure.

**What is not bounded.** ``kld_max`` beyond a limit stays beyond it; within, it takes all windows,
as do ``kld_median`` and ``kld_p99``. Gates on sizes, speeds, answers and pictures rest on no
window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from phipipe.evaluate.sampling import MEANS, WHOLE

Rows = Sequence[Mapping[str, npt.NDArray[np.float32]]]  # of windows: ``reference.score``
Doubles = npt.NDArray[np.float64]
Limits = Mapping[str, float]  # "min", "max"

PROMISED = 0.01  # wrong verdicts of builds, at most
SPENT = 0.0015
# Of the mean: the standard deviation between windows of 512 tokens was 4 to 28 % of it, of forty
# builds of the embedded model and a trained one.
SPREAD = 0.3
FIRST_LOOK = 4  # windows: fewer say next to nothing of their spread
RELATIVE_ERROR = 0.05
# nats: a mean divergence below it is the order of additions in 32 bits (``gates.PARITY_KLD_MEAN``),
# and nobody needs 5 % of that
LEAST_ERROR = 1e-6


def looks(count: int) -> tuple[int, ...]:
    """After how many of ``count`` windows it is asked whether they are enough: from the fourth on
    after each, from the sixteenth on after an eighth more; never after the last."""
    found, at = [], FIRST_LOOK
    while at < count:
        found.append(at)
        at += max(1, at // 8)
    return tuple(found)


def tail(t: float, degrees: int) -> float:
    """The chance that Student's t with ``degrees`` of freedom exceeds ``t`` ≥ 0 (Abramowitz &
    Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(1, (degrees - odd) // 2):
        term *= square * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
        total += term
    total *= math.sin(angle)
    if odd:
        total = 2 / math.pi * (angle + (total if degrees > 1 else 0.0))
    return (1 - total) / 2


@lru_cache(maxsize=4096)
def critical(level: float, degrees: int) -> float:
    """The t that is exceeded with a chance of ``level``, from 1e-12 to 0.5, by bisection."""
    low, high = 0.0, 1.0
    while tail(high, degrees) > level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, degrees) > level else (low, middle)
    return high


def bounds(
    values: Doubles, level: float, *, positive: bool, least: float = 0.0, spread: float = SPREAD
) -> tuple[Doubles, Doubles]:
    """The mean that ``values`` come from lies below the first with a chance of ``level``, and above
    the second.

    Args:
        values: means of windows, [..., windows].
        positive: they cannot be negative, and may be skewed.
        least: the least variance between windows to count with.
        spread: the least standard deviation, as a share of the mean.
    """
    count = values.shape[-1]
    t, z = critical(level, count - 1), NormalDist().inv_cdf(1 - level)
    mean, variance = values.mean(-1), values.var(-1, ddof=1)
    floor = np.maximum(least, (spread * mean) ** 2)
    reach = np.sqrt(np.maximum(t**2 * variance, z**2 * floor) / count)
    low, high = mean - reach, mean + reach
    if not positive:
        return low, high
    above = np.asarray((values > 0).all(-1))
    logs = np.log(np.where(above[..., None], values, 1.0))
    variance = logs.var(-1, ddof=1)
    floor = floor / np.where(above, mean, 1.0) ** 2  # of a logarithm, a variance is relative
    reach = np.maximum(t * _cox(variance, count), z * _cox(floor, count))
    middle = logs.mean(-1) + variance / 2
    return (
        np.where(above, np.minimum(low, np.exp(middle - reach)), low),
        np.where(above, np.maximum(high, np.exp(middle + reach)), high),
    )


def _cox(variance: Doubles, count: int) -> Doubles:
    """The standard error of the logarithm of a log-normal mean."""
    error: Doubles = np.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    return error


def standard_error(rows: Rows) -> tuple[float, float]:
    """Mean KL divergence and its standard error, in nats: that between windows, or that of
    independent positions where it is larger."""
    kld = _stack(rows, "kld")
    if len(kld) < 2:
        return float(kld.mean()), math.inf
    variance = max(float(kld.mean(1).var(ddof=1)), float(kld.var(ddof=1)) / kld.shape[1])
    return float(kld.mean()), math.sqrt(variance / len(kld))


@dataclass(frozen=True, kw_only=True)
class Enough:
    """Whether the windows scored so far are enough for ``gates``, of ``count`` at most."""

    gates: Mapping[str, Limits]
    count: int

    def __call__(self, rows: Rows) -> bool:
        """Asked after each window, with all of them. Limits of what rests on no window are left to
        the step that has their figures."""
        if len(rows) not in looks(self.count):
            return False
        mean, error = standard_error(rows)
        return error <= max(RELATIVE_ERROR * mean, LEAST_ERROR) and all(
            self.verdict(name, limits, rows) is not None
            for name, limits in self.gates.items()
            if name in MEANS | WHOLE
        )

    def verdict(self, name: str, limits: Limits, rows: Rows) -> bool | None:
        """Whether the gate is passed; None: more windows have to say."""
        if name in WHOLE:
            return _of_extremes(name, limits, rows)
        values, least, positive = quantity(name, rows)
        # log-likelihoods of text vary less than what a build loses
        spread = 0.0 if name == "ppl" else SPREAD
        sides = sum(len(own) for key, own in self.gates.items() if key in MEANS)
        level = SPENT / sides / len(looks(self.count))
        low, high = bounds(values, level, positive=positive, least=least, spread=spread)
        return inside(float(low), float(high), transformed(name, limits))


def inside(low: float, high: float, limits: Limits) -> bool | None:
    """Whether what lies between ``low`` and ``high`` lies within ``limits``; None: it is open."""
    least, most = limits.get("min", -math.inf), limits.get("max", math.inf)
    if low > most or high < least:
        return False
    return True if least <= low and high <= most else None


def quantity(name: str, rows: Rows) -> tuple[Doubles, float, bool]:
    """What the metric ``name`` is a function of the mean of: for each window, float64 [windows];
    the least variance of such a mean; and whether none can be negative."""
    if name in ("kld_mean", "kld_run", "ppl"):
        positions = _stack(rows, "nll" if name == "ppl" else "kld")
    elif name == "ppl_ratio":
        positions = _stack(rows, "nll") - _stack(rows, "nll_baseline")
    elif name == "dp_rms":
        positions = _stack(rows, "dp") ** 2
    else:
        positions = 1 - _stack(rows, "top1")
    each = positions.shape[1]
    least = float(positions.var()) / each
    if name == "top1":  # where all agree, the next may not (Laplace's rule of succession)
        share = (positions.sum() + 1) / (positions.size + 2)
        least = max(least, float(share * (1 - share)) / each)
    return positions.mean(1), least, name != "ppl_ratio"


def transformed(name: str, limits: Limits) -> dict[str, float]:
    """Limits of the metric ``name`` as limits of what ``quantity`` gives."""
    if name == "top1":
        return {("max" if side == "min" else "min"): 1 - limits[side] for side in limits}
    if name in ("ppl", "ppl_ratio"):
        return {k: math.log(v) if v > 0 else -math.inf for k, v in limits.items()}
    if name == "dp_rms":
        return {k: v * abs(v) for k, v in limits.items()}
    return dict(limits)


def _of_extremes(name: str, limits: Limits, rows: Rows) -> bool | None:
    """Of a highest value only that it is beyond, as far as windows are to come."""
    if name != "kld_max":
        return None
    highest = float(_stack(rows, "kld").max())
    if highest > limits.get("max", math.inf):
        return False
    return True if highest >= limits.get("min", -math.inf) and "max" not in limits else None


def _stack(rows: Rows, name: str) -> Doubles:
    return np.stack([row[name] for row in rows]).astype(np.float64)

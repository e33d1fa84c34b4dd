"""Axes of the page's charts: where a value lies, in percent of the axis, and which ticks it has.

An axis is linear and starts at zero, or it is logarithmic where values span a decade. A zero has a
place of its own at the low end of a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_TICKS = 6  # more of them touch each other on a phone
DECADE = 10
SMALLEST, LARGEST = 1e-15, 1e15  # beyond these a value counts as zero, or as that much
NARROWEST = 0.3  # decades: one build alone has ticks on both sides, too
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# The widest span, in decades, and the digits that have a tick in each decade.
_DIGITS = (
    (0.8, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)),
    (1.6, (1.0, 2.0, 5.0)),
    (2.6, (1.0, 3.0)),
    (math.inf, (1.0,)),
)


@dataclass(frozen=True)
class Tick:
    """A labelled place of an axis, in percent of its length."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """``low`` and ``high`` are its ends, or their logarithms where it ``is_log``."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[Tick, ...] = ()

    def share(self, value: float) -> float:
        """Where ``value`` lies, from 0 to 100; a zero lies near the low end of a log axis."""
        value = _bounded(value)
        if self.is_log and value == 0:
            return 3.0
        at = math.log10(value) if self.is_log else value
        return round(min(max(100 * (at - self.low) / (self.high - self.low), 0.0), 100.0), 2)


def fitting(values: Iterable[float]) -> Axis:
    """Linear from zero, or logarithmic where values span a decade."""
    every = [_bounded(value) for value in values]
    above = [value for value in every if value > 0]
    wide = bool(above) and max(above) / min(above) >= DECADE
    return logarithmic(every) if wide else linear(every)


def linear(values: Iterable[float]) -> Axis:
    """From zero to a little beyond the highest of ``values``."""
    highest = max([*map(_bounded, values), 0.0]) or 1.0
    rough = 10.0 ** math.floor(math.log10(highest / MOST_TICKS))
    step = next(rough * n for n in (1, 2, 2.5, 5, 10, 20) if highest / (rough * n) < MOST_TICKS)
    whole = Axis(low=0.0, high=1.04 * highest, is_log=False)
    places = (step * n for n in range(math.floor(highest / step) + 1))
    ticks = tuple(Tick(whole.share(value), _text(value)) for value in places)
    return Axis(low=whole.low, high=whole.high, is_log=False, ticks=ticks)


def logarithmic(values: Iterable[float]) -> Axis:
    """Around ``values`` with some air; zeros among them get a place and a tick."""
    every = [_bounded(value) for value in values]
    logs = [math.log10(value) for value in every if value > 0] or [-3.0, 0.0]
    has_zero = any(value <= 0 for value in every)
    middle, span = (min(logs) + max(logs)) / 2, max(max(logs) - min(logs), NARROWEST)
    low, high = middle - 0.56 * span, middle + 0.56 * span
    whole = Axis(low=low - 0.16 * span * has_zero, high=high, is_log=True)
    ticks = [Tick(whole.share(value), _text(value)) for value in _round_values(low, high)]
    stride = math.ceil(len(ticks) / (MOST_TICKS - has_zero))
    kept = ticks[::-1][::stride][::-1]
    zero = [Tick(whole.share(0.0), "0")] if has_zero else []
    return Axis(low=whole.low, high=high, is_log=True, ticks=(*zero, *kept))


def _bounded(value: float) -> float:
    return 0.0 if value < SMALLEST else min(value, LARGEST)


def _round_values(low: float, high: float) -> list[float]:
    """Those with few digits between two logarithms."""
    digits = next(digits for widest, digits in _DIGITS if high - low <= widest)
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = (digit * 10.0**power for power in powers for digit in digits)
    return [value for value in values if low <= math.log10(value) <= high]


def _text(value: float) -> str:
    """Few signs: ``0.05``, ``300``, ``10⁻⁶``, ``2·10⁻⁵``."""
    if value == 0 or 1e-3 <= value < 1e5:
        return f"{value:.6g}"
    digit, _, power = f"{value:.1e}".partition("e")
    raised = f"10{str(int(power)).translate(_RAISED)}"
    return raised if float(digit) == 1 else f"{float(digit):g}·{raised}"

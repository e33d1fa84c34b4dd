"""From predicted to real: what built files say of the sizes and losses that were predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.tuning.curve import Point

TINY = 1e-12  # nats that count as none
STEEPEST, FLATTEST = 1.5, 0.5  # powers that two built files may suggest


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A built file: what was ``predicted`` of it, and what it has."""

    predicted: Point
    size_bytes: int
    kld: float


@dataclass(frozen=True)
class Fit:
    """What is known of predictions from ``files``, in the order in which they were built;
    ``factor`` stands for the losses as long as there are none."""

    files: Sequence[Measured] = ()
    factor: float = 1.0

    def beside(self, predicted: Point) -> int:
        """Bytes that a file takes beside what is predicted: those of the nearest one built."""
        if not self.files:
            return 0
        near = min(self.files, key=lambda f: abs(f.predicted.size_bytes - predicted.size_bytes))
        return near.size_bytes - near.predicted.size_bytes

    def kld(self, loss: float) -> float:
        """The mean KL divergence in nats where ``loss`` is predicted.

        The errors of all groups add up while they are small. Of one file the factor between both
        is taken, of several a power law through the two nearest.
        """
        files = sorted(self.files, key=lambda file: _apart(file, loss))
        if not files:
            return self.factor * loss
        near = files[0]
        other = next((f for f in files[1:] if abs(_apart(f, near.predicted.loss)) > 0.05), None)
        share = max(loss, TINY) / max(near.predicted.loss, TINY)
        return near.kld * math.pow(share, _power(near, other))

    def loss(self, kld: float) -> float:
        """The predicted loss at which the mean KL divergence is ``kld``, by bisection."""
        low, high = TINY, 1e3
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.kld(middle) < kld else (low, middle)
        return low


def _apart(file: Measured, loss: float) -> float:
    return abs(math.log(max(loss, TINY) / max(file.predicted.loss, TINY)))


def _power(near: Measured, other: Measured | None) -> float:
    if other is None or min(near.kld, other.kld) <= 0:
        return 1.0
    rise = math.log(near.kld / other.kld)
    power = rise / math.log(near.predicted.loss / other.predicted.loss)
    return float(min(max(power, FLATTEST), STEEPEST))

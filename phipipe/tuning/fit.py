"""From predicted to real: what built files say of the sizes and losses that were predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.tuning.curve import Point

TINY = 1e-12  # nats that count as none
STEEPEST, FLATTEST = 1.5, 0.5  # powers that files may suggest beyond them
ALIKE = 0.05  # files whose logarithms are this near suggest no power


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
        is taken; between two the power law through them; beyond all files that through the
        nearest ones, within bounds.
        """
        if not self.files:
            return self.factor * loss
        near, *others = sorted(self.files, key=lambda file: abs(_apart(file, loss)))
        others = [one for one in others if abs(_apart(one, near.predicted.loss)) > ALIKE]
        across = [one for one in others if _apart(one, loss) * _apart(near, loss) < 0]
        power = _power(near, *(across or others)[:1])
        if not across:
            power = min(max(power, FLATTEST), STEEPEST)
        return near.kld * math.exp(power * _apart(near, loss))

    def loss(self, kld: float) -> float:
        """The predicted loss at which the mean KL divergence is ``kld``, by bisection."""
        low, high = TINY, 1e3
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.kld(middle) < kld else (low, middle)
        return low


def _apart(file: Measured, loss: float) -> float:
    """How far ``loss`` lies above what was predicted of ``file``, as a logarithm."""
    return math.log(max(loss, TINY) / max(file.predicted.loss, TINY))


def _power(near: Measured, other: Measured | None = None) -> float:
    """That of the law through both; 1 where one file does not say."""
    if other is None or min(near.kld, other.kld) <= 0:
        return 1.0
    return (math.log(near.kld) - math.log(other.kld)) / _apart(other, near.predicted.loss)

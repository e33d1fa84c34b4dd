"""How much of a step is done, and how long the rest will take at its own pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from phipipe import words

SOONEST_S = 2.0  # that a step must have been heard of before its pace is believed


@dataclass(frozen=True, kw_only=True)
class Progress:
    """``done`` of ``total`` ``unit``; ``share`` is between 0 and 1, ``left_s`` None where no pace
    is known yet."""

    done: int
    total: int
    unit: str
    share: float
    left_s: float | None

    @property
    def words(self) -> str:
        """``50 %, about 40 s left``"""
        left = "" if self.left_s is None else f", about {words.duration(self.left_s)} left"
        return f"{100 * self.share:.0f} %{left}"


class Pace:
    """Of one step: time left, from the first report of what it counts now to the last one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: tuple[int, str] | None = None
        self._first: tuple[float, int] = (0.0, 0)

    def heard(self, done: int, total: int, unit: str) -> Progress:
        """The step says how far it is."""
        now = self._clock()
        counted = (total, unit.partition(" (")[0])  # without what a tool says of this very part
        if self._counted != counted or done < self._first[1]:
            self._counted, self._first = counted, (now, done)
        since, before = self._first
        share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        left = None
        if done > before and total >= done and now - since >= SOONEST_S:
            left = (now - since) * (total - done) / (done - before)
        return Progress(done=done, total=total, unit=unit, share=share, left_s=left)

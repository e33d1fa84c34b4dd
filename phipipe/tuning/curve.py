"""The best choice of widths at every size.

Each group of matrices takes one of several options, and what a choice costs is the sum over groups.
Of each group the options on the lower convex hull of loss over bytes count; walking down all hulls
at once, the steepest step first, gives the best choice at each size that it passes (Everett's
multipliers, Operations Research 11, 1963). What is left of a budget then goes to later steps that
still fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from phipipe.backends.widths import Stored

Choice = dict[str, "Option"]
"""Group → what it takes."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A way to store a group of matrices: its bytes, and its part of the mean KL divergence in
    nats, both predicted."""

    stored: Stored
    size_bytes: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A choice for all groups: their bytes together, and their loss in nats."""

    size_bytes: int
    loss: float


@dataclass(frozen=True)
class _Move:
    """``group`` goes from ``start`` to ``end``, which takes more bytes and loses less."""

    group: str
    start: Option
    end: Option

    @property
    def more_bytes(self) -> int:
        return self.end.size_bytes - self.start.size_bytes

    @property
    def slope(self) -> float:
        """Loss that a byte takes away."""
        return (self.start.loss - self.end.loss) / self.more_bytes


@dataclass(frozen=True)
class Curve:
    """``groups``: name → its options, in any order."""

    groups: Mapping[str, Sequence[Option]]

    @cached_property
    def smallest(self) -> Choice:
        """The choice with the fewest bytes."""
        return {name: hull(options)[0] for name, options in self.groups.items()}

    @cached_property
    def closest(self) -> Choice:
        """The choice with the least loss."""
        return {name: hull(options)[-1] for name, options in self.groups.items()}

    @cached_property
    def _moves(self) -> list[_Move]:
        """All steps down the hulls, the steepest first: those of one group stay in order."""
        every = [
            _Move(name, start, end)
            for name, options in self.groups.items()
            for start, end in pairwise(hull(options))
        ]
        return sorted(every, key=lambda move: -move.slope)

    def points(self) -> Iterator[Point]:
        """The best choices, the smallest first."""
        chosen = dict(self.smallest)
        yield point(chosen)
        for move in self._moves:
            chosen[move.group] = move.end
            yield point(chosen)

    def within(self, size_bytes: int) -> Choice | None:
        """The best choice of at most so many bytes; None if the smallest takes more."""
        chosen = dict(self.smallest)
        left = size_bytes - _totals(chosen)[0]
        if left < 0:
            return None
        for move in self._moves:
            if chosen[move.group] is move.start and move.more_bytes <= left:
                chosen[move.group] = move.end
                left -= move.more_bytes
        return chosen

    def reaching(self, loss: float) -> Choice | None:
        """The smallest choice that loses at most so much; None if none does."""
        chosen = dict(self.smallest)
        for move in self._moves:
            if _totals(chosen)[1] <= loss:
                break
            chosen[move.group] = move.end
        return chosen if _totals(chosen)[1] <= loss else None


def point(choice: Mapping[str, Option]) -> Point:
    """What ``choice`` comes to."""
    size_bytes, loss = _totals(choice)
    return Point(size_bytes=size_bytes, loss=loss)


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of loss over bytes, the smallest first, each of less
    loss than the one before."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.size_bytes, one.loss)):
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _is_above(kept[-2], kept[-1], option):
            kept.pop()
        kept.append(option)
    return kept


def _is_above(left: Option, middle: Option, right: Option) -> bool:
    """Whether ``middle`` lies on or above the line from ``left`` to ``right``."""
    across = (middle.size_bytes - left.size_bytes) * (right.loss - left.loss)
    return (middle.loss - left.loss) * (right.size_bytes - left.size_bytes) >= across


def _totals(choice: Mapping[str, Option]) -> tuple[int, float]:
    options = choice.values()
    return sum(one.size_bytes for one in options), sum(one.loss for one in options)

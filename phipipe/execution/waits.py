"""What the steps of a run wait for, written down while it goes on.

A step waits for a result from when all others that it needs are there: so long that one alone kept
it back. Then it may wait for its toolchain, and then in the queue, for what the last end before its
start made free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from phipipe.execution.held import Cause, Held, Wait
from phipipe.execution.nodes import Node

SHORTEST_S = 0.01  # less is the run's own work between two steps

# a step, what ran here before an end, and whether toolchains were being installed → what was in
# its way then
Obstacle = Callable[[Node, Sequence[Node], bool], Cause | None]


class _End(NamedTuple):
    """The end of a ``step`` or of the installation of a ``toolchain``, and what went on until
    then."""

    at: float
    step: str | None
    toolchain: str | None
    running: tuple[Node, ...]
    installing: bool


class Waits:
    """Used from the run's own thread alone. Times are of ``clock``, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start = clock, clock()
        self._results: dict[str, float] = {}  # by identity
        self._tools: dict[str, tuple[str, float]] = {}
        self._queued: dict[str, tuple[float, int]] = {}  # since when, and after how many ends
        self._ends: list[_End] = []

    def ended(self, node: Node, running: Sequence[Node], installing: bool) -> None:
        """``node``, one of those ``running``, has just ended in whatever way."""
        self._ends.append(_End(self._clock(), node.label, None, tuple(running), installing))

    def installed(self, toolchain: str, running: Sequence[Node]) -> None:
        """``toolchain`` is there, or could not be installed."""
        self._ends.append(_End(self._clock(), None, toolchain, tuple(running), True))

    def equipped(self, node: Node, toolchain: str) -> None:
        """``node`` has waited for ``toolchain``, which is there now."""
        self._tools[node.identity] = (toolchain, self._ends[-1].at)

    def came(self, node: Node) -> None:
        """``node`` has its result: it has just been made, or was stored."""
        made = self._ends and self._ends[-1].step == node.label
        self._results[node.identity] = self._ends[-1].at if made else self._clock()

    def queued(self, node: Node) -> None:
        """``node`` could start now, if there is room."""
        self._queued[node.identity] = (self._clock(), len(self._ends))

    def held(self, node: Node, needs: Sequence[Node], obstacle: Obstacle) -> Held:
        """``node`` starts: what it ``needs``, and what it has waited for."""
        found = [wait for wait in self._waits(node, needs, obstacle) if wait.seconds >= SHORTEST_S]
        return Held(needs=tuple(need.label for need in needs), waits=tuple(found))

    def _waits(self, node: Node, needs: Sequence[Node], obstacle: Obstacle) -> Iterator[Wait]:
        ends = sorted((self._results.get(n.identity, self._start), n.label) for n in needs)
        ready = ends[-1][0] if ends else self._start
        if len(ends) > 1:
            seconds = round(ready - ends[-2][0], 3)
            yield Wait(cause="result", seconds=seconds, step=ends[-1][1])
        if known := self._tools.get(node.identity):
            tool, there = known
            yield Wait(cause="toolchain", seconds=round(there - ready, 3), toolchain=tool)
        since, count = self._queued.pop(node.identity, (self._clock(), len(self._ends)))
        for end in reversed(self._ends[count:]):
            if cause := obstacle(node, end.running, end.installing):
                seconds = round(end.at - since, 3)
                yield Wait(cause=cause, seconds=seconds, step=end.step, toolchain=end.toolchain)
                return

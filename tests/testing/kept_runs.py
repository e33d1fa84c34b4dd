"""Runs of any shape as their events are kept: made by the run's own bookkeeping on a clock that is
set by hand, so that nothing is awaited."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phipipe.execution.nodes import Node
from phipipe.execution.past_runs import Run
from phipipe.execution.room import Room
from phipipe.execution.waits import Waits
from testing.plans import step

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Drawn:
    """A step to come: what it needs (places of earlier ones), what it takes."""

    seconds: float
    needs: Sequence[int] = ()
    memory_bytes: int = 0
    alone: bool = False
    cached: bool = False


@dataclass
class Kept:
    """A run that goes on as ``dispatch`` lets it, on a clock of its own."""

    drawn: Sequence[Drawn]
    jobs: int = 2
    memory_bytes: int = 100
    now: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, event: str, **more: Any) -> None:
        moment = BEGIN + datetime.timedelta(seconds=self.now)
        self.events.append({"event": event, "time": moment.isoformat(), "run": "r", **more})

    def run(self) -> Run:
        """The run, from its first event to its last."""
        self.tell("run_started", command="run", builds=["a"], pid=1, process_started=0.0)
        self._waits = Waits(lambda: self.now)
        self._room = Room(
            jobs=self.jobs,
            memory_bytes=self.memory_bytes,
            is_here=lambda one: True,
            elsewhere=False,
        )
        self._nodes = [_node(i, one) for i, one in enumerate(self.drawn)]
        self._open, self._queue = list(range(len(self.drawn))), list[int]()
        self._running = dict[int, float]()  # place → its end
        self._done = set[int]()
        while self._open or self._queue or self._running:
            self._look()
            self._launch()
            if self._running:
                self._end(min(self._running, key=lambda i: (self._running[i], i)))
        self.tell("run_finished", exit_code=0, seconds=round(self.now, 3), cpu_seconds=1.5)
        return kept(self.events, seconds=round(self.now, 3))

    def _look(self) -> None:
        fresh = [i for i in self._open if set(self.drawn[i].needs) <= self._done]
        for i in fresh:
            self._open.remove(i)
            if self.drawn[i].cached:
                self._finish(i, cached=True)
            else:
                self._queue.append(i)
                self._waits.queued(self._nodes[i])
        if fresh:
            self._look()

    def _launch(self) -> None:
        for measuring in (False, True):
            for i in [i for i in self._queue if self.drawn[i].alone == measuring]:
                here = [self._nodes[j] for j in self._running]
                if self._room.obstacle(self._nodes[i], here, False) is None:
                    self._queue.remove(i)
                    self._start(i)

    def _start(self, i: int) -> None:
        needs = [self._nodes[j] for j in self.drawn[i].needs]
        held = self._waits.held(self._nodes[i], needs, self._room.obstacle)
        waits = [wait.as_json() for wait in held.waits]
        self.tell("step_started", step=f"s{i}", why="w", needs=list(held.needs), waits=waits)
        self._running[i] = self.now + self.drawn[i].seconds

    def _end(self, i: int) -> None:
        self.now = max(self.now, self._running[i])
        self._waits.ended(self._nodes[i], [self._nodes[j] for j in self._running], False)
        del self._running[i]
        self._finish(i, cached=False)

    def _finish(self, i: int, *, cached: bool) -> None:
        self._waits.came(self._nodes[i])
        self._done.add(i)
        took = {} if cached else {"seconds": self.drawn[i].seconds, "cpu_seconds": 0.5}
        named = {"step": f"s{i}", "key": "ab" * 32, "digest": "cd" * 32, "bytes": 1}
        self.tell("step_finished", **named, cached=cached, shared=False, **took)


def _node(i: int, one: Drawn) -> Node:
    made = step(f"s{i}", memory_bytes=one.memory_bytes, alone=one.alone)
    return Node(step=made, identity=str(i), needs={}, after=set(), builds={0}, label=f"s{i}")


def kept(events: Sequence[dict[str, Any]], seconds: float | None = None) -> Run:
    """``events`` as a run that was read."""
    return Run(
        id="20260101-000000-abcd",
        command="run",
        started=str(events[0]["time"]),
        builds=("a",),
        state="ok",
        exit_code=0,
        seconds=seconds,
        events=tuple(events),
    )


def usual(seed: int = 1, count: int = 14) -> Run:
    """A run of ``count`` steps, some beside others, one measurement, one from the cache."""
    dice = random.Random(seed)
    drawn = [
        Drawn(
            seconds=dice.randrange(1, 4000) / 10,
            needs=tuple(dice.sample(range(i), min(i, dice.randrange(3)))),
            memory_bytes=dice.choice([10, 60, 90]),
            alone=i % 7 == 6,
            cached=i == 3,
        )
        for i in range(count)
    ]
    return Kept(drawn).run()

"""The steps and installations of a recorded run, each with its begin and end on the run's clock."""

from __future__ import annotations

import datetime
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from phipipe.execution.event_words import Event
from phipipe.steps import Json

BEGINS = {"step_started": "step", "toolchain_started": "toolchain"}
ENDS = {"step_finished": "step", "step_failed": "step", "toolchain_finished": "toolchain"}
_NOTHING: Mapping[str, Json] = {}


@dataclass(kw_only=True)
class Row:
    """``start`` and ``end`` are seconds after the run's first event; ``begun`` and ``ended`` are
    places among its events, which no clock that is set can mix up. An event that is missing is
    empty."""

    name: str
    kind: str  # "step" or "toolchain"
    start: float
    begun: int
    end: float = 0.0
    ended: int = 0
    first: Event = field(default_factory=lambda: _NOTHING)
    last: Event = field(default_factory=lambda: _NOTHING)

    @property
    def state(self) -> str:
        """done, cached, failed or unfinished."""
        if not self.last:
            return "unfinished"
        if "exit_code" in self.last:
            return "failed"
        return "cached" if self.last.get("cached") else "done"


def seconds(events: Sequence[Event]) -> list[float]:
    """When each event was, in seconds after the first; never before the one ahead of it."""
    latest, found = 0.0, list[float]()
    first: float | None = None
    for event in events:
        moment = _moment(event)
        if moment is not None:
            first = moment if first is None else first
            latest = max(latest, moment - first)
        found.append(round(latest, 3))
    return found


def _moment(event: Event) -> float | None:
    try:
        return datetime.datetime.fromisoformat(str(event["time"])).timestamp()
    except (ValueError, OverflowError, OSError):  # somebody has changed the file
        return None


def rows(events: Sequence[Event]) -> list[Row]:
    """Steps and installations in the order in which they began; one that has not ended goes on
    to the last event."""
    at, going = seconds(events), defaultdict[tuple[str, str], deque[Row]](deque)
    found: list[Row] = []
    for i, event in enumerate(events):
        said = str(event["event"])
        kind = BEGINS.get(said) or ENDS.get(said)
        if kind is None:
            continue
        name = str(event.get(kind))
        known = going[kind, name]
        if said in BEGINS or not known:  # else it was stored, or failed before it began
            found.append(Row(name=name, kind=kind, start=at[i], begun=i))
        if said in BEGINS:
            found[-1].first = event
            known.append(found[-1])
        else:
            row = known.popleft() if known else found[-1]
            row.end, row.ended, row.last = at[i], i, event
    for row in chain.from_iterable(going.values()):
        row.end, row.ended = at[-1], len(events)
    return found

"""How long a step will take, as the same step took before, or else as it says itself.

A result's record has the seconds that it took. Of the results of one kind (the same step of the
same runtime) those with the same parameters come first, and of these the ones whose inputs were
nearest in size. Their seconds are scaled by that size. Where no result is near, the step's own
estimate counts (``Step.seconds``), if it has one.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phipipe.steps import Json, Outside, Step
from phipipe.store import keys

NEAREST = 5  # results that an estimate rests on, at most
FARTHEST = 8.0  # how many times larger or smaller an input may be
KIND_PARAMS = ("backend",)
SMALL = 2**20  # bytes; whoever reads less takes no less time


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``seconds`` that a step will take, as ``earlier`` results of its kind tell; 0 of them: as the
    step says itself."""

    seconds: float
    earlier: int


@dataclass(frozen=True, kw_only=True)
class Took:
    """A result of the past: what it read and how long it took."""

    seconds: float
    size_bytes: int
    params: str  # a digest


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How long results took, by kind of step."""

    took: Mapping[tuple[str, ...], Sequence[Took]] = field(default_factory=dict)

    def estimate(
        self, step: str, runs: str, params: Mapping[str, Json], size_bytes: int
    ) -> Estimate | None:
        """How long ``step`` takes, which reads ``size_bytes``; None where nothing tells."""
        known = self.took.get(_kind(step, runs, params), ())
        size_bytes = max(size_bytes, SMALL)
        near = [one for one in known if _distance(one, size_bytes) <= math.log(FARTHEST)]
        own = _digest(params)
        alike = [one for one in near if one.params == own] or near
        if not alike:
            return None
        nearest = sorted(alike, key=lambda one: _distance(one, size_bytes))[:NEAREST]
        scaled = [one.seconds * size_bytes / one.size_bytes for one in nearest]
        return Estimate(seconds=statistics.median(scaled), earlier=len(nearest))

    def of_step(self, step: Step, sizes: Mapping[str, int]) -> Estimate | None:
        """The same of a planned step; ``sizes``: step name → bytes that it has written, or will."""
        size_bytes = sum(sizes[name] for name in step.needs.values())
        if not step.needs:
            size_bytes = step.output_bytes or sum(map(_on_disk, step.outside.values()))
        known = self.estimate(step.name, step.runs, step.params, size_bytes)
        if known is None and step.seconds is not None:
            return Estimate(seconds=step.seconds, earlier=0)
        return known


def timings(records: Sequence[Mapping[str, Json]]) -> Timings:
    """What ``records`` of a store tell; those without a time tell nothing."""
    sizes = {str(record.get("digest")): _written(record) for record in records}
    took: defaultdict[tuple[str, ...], list[Took]] = defaultdict(list)
    for record in records:
        seconds = record.get("usage", {}).get("seconds")
        size_bytes = _read(record, sizes)
        if size_bytes is None or not isinstance(seconds, int | float) or not seconds > 0:
            continue
        params = record["params"]
        one = Took(
            seconds=float(seconds), size_bytes=max(size_bytes, SMALL), params=_digest(params)
        )
        took[_kind(str(record.get("step")), str(record["runs"]), params)].append(one)
    return Timings(took=took)


def _read(record: Mapping[str, Json], sizes: Mapping[str, int]) -> int | None:
    """Bytes that a step read; of one that brings what was outside, what it wrote. None: nobody
    knows any more."""
    known = [sizes.get(str(digest)) for digest in record["inputs"].values()]
    if not any(size is not None for size in known):
        return _written(record)
    return sum(size for size in known if size is not None) if None not in known else None


def _on_disk(source: Outside) -> int:
    sizes = 0
    for name in source.files:
        with contextlib.suppress(OSError):
            sizes += (source.folder / name).stat().st_size
    return sizes


def _written(record: Mapping[str, Json]) -> int:
    return sum(int(output["size"]) for output in record["outputs"])


def _distance(one: Took, size_bytes: int) -> float:
    return abs(math.log(size_bytes / one.size_bytes))


def _kind(step: str, runs: str, params: Mapping[str, Json]) -> tuple[str, ...]:
    return step, runs, *(str(params.get(name)) for name in KIND_PARAMS)


def _digest(params: Mapping[str, Json]) -> str:
    """Parameters but for names of files and the provenance, which tell nothing of the time."""
    return keys.key_of({k: v for k, v in params.items() if k not in ("files", "steps")})

"""What a run's events tell of where its time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from phipipe.execution.held import Cause
from phipipe.execution.past_runs import Run
from phipipe.output import profiled
from phipipe.output.profiled import Profile, Timed, Wait
from phipipe.profiling import path
from phipipe.profiling.rows import Row, rows, seconds
from phipipe.steps import Json

_END = 2**63  # of what is counted or timed: whatever is as large, somebody wrote into the file


def profile(run: Run) -> Profile:
    """Where the time of ``run`` went, as far as it was recorded."""
    found = rows(run.events)
    critical, last = path.critical(found), run.events[-1]
    busy, overlap = _together([row for row in found if row.kind == "step"])
    on_path = None if critical is None else {id(row) for row in critical}
    return Profile(
        id=run.id,
        command=run.command,
        started=run.started,
        state=run.state,
        exit_code=run.exit_code,
        seconds=None if run.seconds is None else round(run.seconds, 1),
        builds=list(run.builds),
        span_seconds=seconds(run.events)[-1],
        busy_seconds=busy,
        overlap_seconds=overlap,
        critical_path=None if critical is None else [row.name for row in critical],
        critical_seconds=None if critical is None else _sum(critical),
        cpu_seconds=_number(last.get("cpu_seconds")),
        read_bytes=_count(last.get("read_bytes")),
        written_bytes=_count(last.get("written_bytes")),
        steps=[_timed(row, None if on_path is None else id(row) in on_path) for row in found],
    )


def _sum(found: Sequence[Row]) -> float:
    return round(sum(row.end - row.start for row in found), 3)


def _together(steps: Sequence[Row]) -> tuple[float, float]:
    """Seconds in which at least one of ``steps`` ran, and in which two or more did."""
    ran = [row for row in steps if row.end > row.start]  # an end sorts before a begin
    changes = sorted((at, by) for row in ran for at, by in ((row.start, 1), (row.end, -1)))
    spent, going, since = [0.0, 0.0, 0.0], 0, 0.0
    for at, by in changes:
        spent[min(going, 2)] += at - since
        going, since = going + by, at
    return round(spent[1] + spent[2], 3), round(spent[2], 3)


def _timed(row: Row, critical: bool | None) -> Timed:
    end, is_step = row.last, row.kind == "step"
    machine, gpu = end.get("machine"), end.get("gpu")
    return Timed(
        name=row.name,
        is_toolchain=not is_step,
        state=row.state,  # type: ignore[arg-type]
        machine=str(machine) if machine else None,
        start_seconds=row.start,
        seconds=round(row.end - row.start, 3),
        work_seconds=_number(end.get("seconds")) if is_step else None,
        cpu_seconds=_number(end.get("cpu_seconds")),
        read_bytes=_count(end.get("read_bytes")),
        written_bytes=_count(end.get("written_bytes")),
        peak_anon_bytes=_count(end.get("peak_anon_bytes")),
        peak_rss_bytes=_count(end.get("peak_rss_bytes")),
        scored_tokens=_count(end.get("scored_tokens")),
        generated_tokens=_count(end.get("generated_tokens")),
        layers_read=_count(end.get("layers_read")),
        layers_given=_count(end.get("layers_given")),
        gpu=str(gpu) if gpu else None,
        peak_gpu_bytes=_count(end.get("peak_gpu_bytes")),
        waits=_waits(row),
        critical=critical,
    )


def _waits(row: Row) -> list[Wait] | None:
    told = row.first.get("waits")
    if not isinstance(told, list):
        return None
    return [wait for one in told if isinstance(one, dict) for wait in _wait(one)]


def _wait(told: dict[str, Json]) -> Iterator[Wait]:
    """One wait; nothing where somebody has changed the file."""
    length, ended = _number(told.get("seconds")), {n: told.get(n) for n in ("step", "toolchain")}
    if told.get("for") in get_args(Cause) and length is not None:
        named = {name: None if value is None else str(value) for name, value in ended.items()}
        yield profiled.Wait(cause=told["for"], seconds=length, **named)


def _number(value: Json) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return round(float(value), 3) if known and 0 <= value < _END else None


def _count(value: Json) -> int | None:
    return value if type(value) is int and 0 <= value < _END else None

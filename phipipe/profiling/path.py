"""The critical path: from the last end of a run back to its begin, each time to what the step had
waited for last."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.profiling.rows import Row
from phipipe.steps import Json


def critical(rows: Sequence[Row]) -> list[Row] | None:
    """The steps and installations that set the run's length, in their order; those that took no
    time are left out. None where the run did not record what its steps need.

    No two of them overlap.
    """
    worked = [row for row in rows if row.state != "cached"]
    steps = [row for row in worked if row.kind == "step" and row.first]
    if not steps or not all(isinstance(row.first.get("needs"), list) for row in steps):
        return None
    last: Row | None = max(worked, key=lambda row: (row.end, row.ended))
    found: list[Row] = []
    while last is not None:
        found.append(last)
        last = _before(last, rows)
    return [row for row in reversed(found) if row.state != "cached"]


def _before(row: Row, rows: Sequence[Row]) -> Row | None:
    """What ``row`` waited for last; None where it began with the run."""
    earlier = [other for other in rows if other is not row and other.ended <= row.begun]
    if row.kind == "step" and row.first:
        earlier = [other for other in earlier if (other.kind, other.name) in _wanted(row)]
    else:  # an installation, or a cached step: looked at when something else had ended
        earlier = [other for other in earlier if other.state != "cached"]
    return max(earlier, key=lambda other: other.ended, default=None)


def _wanted(row: Row) -> set[tuple[str, str]]:
    """Kind and name of all that can have let ``row`` begin: who ended its last wait, if that was
    for no result, or else all that it needs."""
    waits = row.first.get("waits")
    last = waits[-1] if isinstance(waits, list) and waits else None
    if isinstance(last, dict) and last.get("for") != "result":
        kind = "step" if last.get("step") is not None else "toolchain"
        return {(kind, str(last.get(kind)))}
    needs: Json = row.first["needs"]
    return {("step", str(name)) for name in needs}

"""The chart of a run's steps by time: where each bar lies, in percent of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.board import axes
from phipipe.board.axes import Axis
from phipipe.output.profiled import Profile, Timed
from phipipe.profiling import words

# The widest run, in seconds, that is shown in a unit; the unit and its seconds.
UNITS = ((240.0, "seconds", 1.0), (14_400.0, "minutes", 60.0), (float("inf"), "hours", 3600.0))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A step's place: its wait from ``wait_left`` on and its work, ``wide`` percent from ``left``
    on; ``told`` says the same."""

    step: Timed
    wait_left: float
    left: float
    wide: float
    told: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars in the order in which they began; ``cached``: steps that have none."""

    axis: Axis
    unit: str
    bars: Sequence[Bar]
    cached: Sequence[str]


def chart(profile: Profile) -> Chart:
    """The chart of ``profile``."""
    span = max([profile.span_seconds, 0.001])
    unit, factor = next((name, length) for most, name, length in UNITS if span <= most)
    axis = axes.linear([span / factor])
    shown = [step for step in profile.steps if step.state != "cached"]
    return Chart(
        axis=axis,
        unit=unit,
        bars=[_bar(step, axis, factor) for step in shown],
        cached=[step.name for step in profile.steps if step.state == "cached"],
    )


def _bar(step: Timed, axis: Axis, factor: float) -> Bar:
    start, end = step.start_seconds, step.start_seconds + step.seconds
    left, wait = axis.share(start / factor), words.waited(step) or 0.0
    told = f"{words.lasted(step.seconds)} s from {words.lasted(start)} s on"
    if step.waits:
        told += f", after {words.lasted(wait)} s of waiting for {words.reasons(step.waits)}"
    return Bar(
        step=step,
        wait_left=axis.share(max(start - wait, 0.0) / factor),
        left=left,
        wide=round(axis.share(end / factor) - left, 2),
        told=told,
    )

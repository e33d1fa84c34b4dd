"""Figures of two sides, and whether they differ by more than chance.

Both sides of one text are scored on the same tokens, so that errors partly cancel: twice the
standard error of two independent figures is a cautious limit. Times have a spread instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from phipipe.evaluate.answer_reports import AnswerFigures
from phipipe.evaluate.reports import Metrics, Speed, Vision
from phipipe.evaluate.run_reports import AsRun
from phipipe.metrics import METRICS, Metric
from phipipe.output.diff import Figure

ERRORS = 2.0  # standard errors that a change must exceed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All figures of one side, their standard errors, and the spread of times."""

    values: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)


def measured(
    metrics: Metrics | None,
    speed: Speed | None,
    vision: Vision | None,
    answers: AnswerFigures | None,
    run: AsRun | None = None,
) -> Measured:
    """The figures that some reports have."""
    reports = (metrics, run, speed, vision, answers)
    values = {k: v for report in reports if report for k, v in report.metrics.items()}
    return Measured(
        values=values,
        stderr={
            **(metrics.stderr if metrics else {}),
            **(run.stderr if run else {}),
            **(answers.stderr if answers else {}),
        },
        spread=speed.spread if speed else {},
    )


def figures(before: Measured, after: Measured, alike: Collection[str]) -> list[Figure]:
    """Every metric of either side, in the order of the table of metrics; ``alike``: those that were
    taken alike."""
    return [
        _figure(metric, before, after, name in alike)
        for name, metric in METRICS.items()
        if name in before.values or name in after.values
    ]


def _figure(metric: Metric, before: Measured, after: Measured, alike: bool) -> Figure:
    name = metric.name
    was, now = before.values.get(name), after.values.get(name)
    limit = _limit(name, before, after)
    return Figure(
        metric=name,
        before=was,
        after=now,
        before_stderr=before.stderr.get(name),
        after_stderr=after.stderr.get(name),
        limit=limit,
        verdict=_verdict(metric, was, now, limit, alike),
    )


def _verdict(
    metric: Metric, was: float | None, now: float | None, limit: float | None, alike: bool
) -> str:
    if was is None or now is None:
        return "added" if was is None else "removed"
    if not alike:
        return "unlike"
    loss = metric.loss(was, now)
    if abs(loss) <= (limit or 0.0):
        return "same"
    return "worse" if loss > 0 else "better"


def _limit(name: str, before: Measured, after: Measured) -> float | None:
    errors = [side.stderr[name] for side in (before, after) if name in side.stderr]
    if errors:
        return ERRORS * math.hypot(*errors)
    widths = [
        max(s.spread[name]) - min(s.spread[name]) for s in (before, after) if s.spread.get(name)
    ]
    return max(widths, default=None)

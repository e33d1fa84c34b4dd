"""Two figures of one file: what it loses by itself (``kld_mean``), and as its runtime computes by
default (``kld_run``).

Files are scored in arithmetic that adds nothing of its own, so that runtimes compare. Where a
runtime rounds more by default, a step of its own scores that.
"""

from __future__ import annotations

from phipipe.evaluate.reports import Figures, Metrics, Report, Run

STEP = "run-evaluate"  # of a plan, where something differs
CACHE_STEP = "kv-evaluate"  # of a plan that asks for a quantized cache
SAME = ""  # how a runtime computes that does by default what it is scored with


class AsRun(Report):
    """``run.json``: an artifact as its runtime computes by default; ``metrics`` has ``kld_run``."""

    FILE = "run.json"

    metrics: Figures
    stderr: Figures
    positions: int


def joined(metrics: Metrics, how: str | None, scored: AsRun | None) -> Metrics:
    """``metrics`` with ``kld_run`` and ``how`` it came about; ``scored`` was it where something
    differs. Nothing is added where nobody can tell (``how`` is None) or nobody scored it."""
    if how == SAME:
        figures, errors = (_renamed(of) for of in (metrics.metrics, metrics.stderr))
        found = AsRun(metrics=figures, stderr=errors, positions=metrics.positions)
    elif how is None or scored is None:
        return metrics
    else:
        found = scored
    return metrics.model_copy(
        update={
            "metrics": {**metrics.metrics, **found.metrics},
            "stderr": {**metrics.stderr, **found.stderr},
            "run": Run(how=how, positions=found.positions),
        }
    )


def _renamed(figures: Figures) -> Figures:
    return {"kld_run": figures["kld_mean"]} if "kld_mean" in figures else {}

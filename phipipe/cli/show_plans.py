"""What plans look like before they are run: steps, costs and places, for people and machines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from phipipe import words
from phipipe.api import plan_words
from phipipe.api.plan_words import cost_words
from phipipe.cli import tables
from phipipe.execution import outlook
from phipipe.execution.outlook import Cost, Outlook
from phipipe.words import counted

if TYPE_CHECKING:
    from phipipe.cluster.places import Workers


def describe(one: Outlook, workers: Workers | None = None) -> str:
    """A table of steps: cached or not, why, what they need and how long they take."""
    return plan_words.describe(one, partial(tables.table, indent=2), workers)


# --- many builds


def overview(outlooks: Sequence[Outlook]) -> str:
    """One line a build, and what all of them cost together."""
    rows = [_row(one) for one in outlooks]
    return f"{tables.table(rows)}\n\n{total_words(outlooks)}"


def total_words(outlooks: Sequence[Outlook]) -> str:
    """What one run of all builds does; shared steps count once."""
    cost = outlook.total(outlooks)
    builds = counted(len(outlooks), "build")
    if not cost.steps:
        return f"{builds}, everything is cached"
    said = cost_words(cost).replace("\n  ", "\n")
    return f"{builds}, {counted(cost.steps, 'step')} will run, shared ones once{said}"


def _row(one: Outlook) -> dict[str, str]:
    plan, cost = one.plan, one.cost
    recipe = plan.build.recipe
    return {
        "build": plan.build.name,
        "device": plan.device.name,
        "backend": recipe.backend,
        "precision": recipe.precision,
        "will run": f"{cost.steps} of {len(one.forecast)}" if cost.steps else "cached",
        "disk": plan_words.size(cost.disk.written),
        "time": _time(cost),
    }


def _time(cost: Cost) -> str:
    if not cost.steps:
        return "-"
    if cost.seconds is None:
        return "?"
    return f"{words.duration(cost.seconds)}{' + ?' if cost.unknown else ''}"

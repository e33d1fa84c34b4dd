"""The command that says beforehand what a run would do: plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from phipipe.cli import answers
from phipipe.cli.build import ONLY, PACKAGES
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, RECIPE, SETS
from phipipe.cli.workplace import store_of_user
from phipipe.errors import TargetError


@command("phipipe plan recipes/quickstart.yaml --set precision=int8")
@RECIPE
@SETS
@ONLY
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with code 3 if `run` would refuse, for want of memory or disk.",
)
@AS_JSON
def plan(
    recipe: Path, sets: Sequence[str], only: Sequence[str], strict: bool, as_json: bool
) -> None:
    """Show what `run` would do: every step, cached or not, why, and what it needs."""
    from phipipe.cli import show
    from phipipe.execution import preflight
    from phipipe.execution.bench import Bench
    from phipipe.planning import plans as planner

    settings, store = store_of_user()
    plans = planner.planned(recipe, sets, only)
    bench = Bench(store, settings, note)
    forecasts = [(planned, bench.foresee(planned)) for planned in plans]
    doubt = preflight.refusal(plans, store, settings, Path(PACKAGES))
    refusal = doubt if settings.preflight else None
    if as_json:
        answers.give(
            [show.plan_json(planned, forecast, refusal) for planned, forecast in forecasts]
        )
    for planned, forecast in () if as_json else forecasts:
        echo(show.describe_plan(planned, forecast))
    if refusal and strict:
        raise TargetError(f"run would refuse: {refusal.message}", hint=refusal.hint)
    if doubt:
        note(f"{'run would refuse' if refusal else 'warning'}: {doubt.message}\n  → {doubt.hint}")

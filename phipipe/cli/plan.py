"""The command that says beforehand what a run would do: plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe import failures
from phipipe.cli import answers
from phipipe.cli.build import ONLY
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, ON, SETS, UserPath, taking
from phipipe.cli.workplace import planning_on, store_of_user
from phipipe.errors import PhipipeError, RecipeError, TargetError

if TYPE_CHECKING:
    from phipipe.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is planned: some builds of some recipes, and whose machines would do it."""

    sets: Sequence[str]
    only: Sequence[str]
    on: str | None
    strict: bool


WISH = taking(
    "wish",
    Wish,
    [
        SETS,
        ONLY,
        ON,
        click.option(
            "--strict",
            is_flag=True,
            help="Exit with code 3 if `run` would refuse: too little memory or disk, no machine.",
        ),
    ],
)


@command("phipipe plan recipes/quickstart.yaml --set precision=int8")
@click.argument("recipes", nargs=-1, required=True, type=UserPath(), metavar="RECIPE|FOLDER...")
@WISH
@AS_JSON
def plan(recipes: Sequence[Path], wish: Wish, as_json: bool) -> None:
    """Show what `run` would do: every step, cached or not, why, what it needs, how long it takes.

    Of several recipes, or of folders, there is one line a build. Times are those of earlier runs,
    scaled by size. With --on, each step's machines are named.
    """
    from phipipe.api import plan_words
    from phipipe.api import plans as foresight
    from phipipe.cli import show_plans

    place = store_of_user()
    with planning_on(wish.on):
        plans, errors = _planned(recipes, wish)
    foreseen = foresight.foresee(plans, place, note, on=wish.on)
    outlooks, workers, refusal = foreseen.outlooks, foreseen.workers, foreseen.refusal
    if as_json:
        answers.give([plan_words.plan_json(one, refusal, workers) for one in outlooks])
    elif _is_one(recipes):
        for one in outlooks:
            echo(show_plans.describe(one, workers))
    elif outlooks:
        echo(show_plans.overview(outlooks))
    if errors:
        raise failures.as_one(errors)
    if refusal and wish.strict:
        raise TargetError(f"run would refuse: {refusal.message}", hint=refusal.hint)
    if doubt := foreseen.doubt:
        note(f"{'run would refuse' if refusal else 'warning'}: {doubt.message}\n  → {doubt.hint}")


def _is_one(recipes: Sequence[Path]) -> bool:
    return len(recipes) == 1 and not recipes[0].is_dir()


def _planned(recipes: Sequence[Path], wish: Wish) -> tuple[list[Plan], list[PhipipeError]]:
    """The plans of all that is asked for; and of several recipes, what is wrong with some.

    Raises:
        PhipipeError: what is wrong with the only recipe.
    """
    from phipipe import backends
    from phipipe.batch import batch as batches
    from phipipe.batch import selection
    from phipipe.planning import plans as planner

    elsewhere = wish.on is not None
    if _is_one(recipes):
        return planner.planned(recipes[0], wish.sets, wish.only, elsewhere=elsewhere), []
    if wish.only:
        raise RecipeError("--only names variants of one recipe", hint="name one recipe")
    items = selection.select(recipes, selection.Wanted(), backends.OptionsOf(), wish.sets)
    batches.prepare(items, None, elsewhere=elsewhere)
    plans = [item.plan for item in items if item.plan]
    return plans, [item.error for item in items if item.error]

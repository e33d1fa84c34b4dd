"""The command that builds a recipe: run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.attempt import attempt, make_board
from phipipe.cli.groups import command
from phipipe.cli.messages import complain, echo, note
from phipipe.cli.options import (
    AS_JSON,
    JOBS,
    LOG_FORMAT,
    ON,
    PUBLISH,
    RECIPE,
    SETS,
    UserPath,
    taking,
)
from phipipe.cli.workplace import store_of_user
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.execution.results import Outcome

PACKAGES = "packages"  # where `run` puts them unless told otherwise
ONLY = click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    shell_complete=completions.variants,
    help="Only this variant of a matrix; repeatable.",
)
OUT = click.option(
    "--out",
    default=PACKAGES,
    show_default=True,
    type=UserPath(Kind.NEW_FOLDER),
    help="Where packages go.",
)


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a recipe is built."""

    out: Path  # where packages go
    jobs: int | None  # steps side by side; None: what cores and memory allow
    on: str | None  # whose machines do them; None: this one
    publish: bool  # whether packages go where the recipe publishes them


@command("phipipe run recipes/quickstart.yaml")
@RECIPE
@SETS
@ONLY
@taking("manner", Manner, [OUT, JOBS, ON, PUBLISH])
@LOG_FORMAT
@AS_JSON
def run(
    recipe: Path, sets: Sequence[str], only: Sequence[str], manner: Manner, as_json: bool
) -> None:
    """Build, evaluate and package what a recipe describes. What is stored already is not done
    again."""
    from phipipe.api import building, show

    place = store_of_user()
    where = building.Where(out=manner.out, jobs=manner.jobs, on=manner.on, publishes=manner.publish)
    plans = building.planned(recipe, note, sets=sets, only=only, on=manner.on)
    building.check_room(plans, place, where, note)
    outcomes = attempt("run", plans, place, where)
    if as_json:
        answers.give([show.outcome_json(outcome) for outcome in outcomes])
    if len(outcomes) == 1 and not as_json and (words := show.describe_outcome(outcomes[0])):
        echo(words)
    if len(outcomes) > 1:
        make_board(outcomes, manner.out, quiet=as_json)
    _fail(outcomes)


def _fail(outcomes: Sequence[Outcome]) -> None:
    """Say which builds failed; the command fails as the worst of them."""
    from phipipe.api import building

    errors = {outcome.plan.build.name: outcome.error for outcome in outcomes if outcome.error}
    worst = building.worst(list(errors.values()))
    if worst is None:
        return
    if len(outcomes) == 1:
        raise worst
    for name, error in errors.items():
        note(f"{name} failed:", is_error=True)
        complain(error)
    raise click.exceptions.Exit(worst.exit_code)

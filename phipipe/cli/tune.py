"""The command that chooses widths: tune."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.attempt import audience
from phipipe.cli.build import ONLY
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, LOG_FORMAT, RECIPE, SETS, Count, UserPath, taking
from phipipe.cli.workplace import store_of_user
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.api.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the choice aims at, what may be spent on it, and where its recipe goes."""

    size: str | None
    bits: float | None
    gates: bool
    builds: int
    answers: bool
    write: Path | None


WISH = taking(
    "wish",
    Wish,
    [
        click.option("--size", metavar="SIZE", help="The largest file, such as 2.2GiB or 900MB."),
        click.option(
            "--bits",
            type=click.FloatRange(min=1, max=16),
            help="The same as bits for each weight, such as 4.5.",
        ),
        click.option(
            "--gates", is_flag=True, help="The smallest file that passes the recipe's gates."
        ),
        click.option(
            "--builds",
            type=Count(min=1, max=20),
            default=4,
            show_default=True,
            help="Files that are built to choose by, at most.",
        ),
        click.option(
            "--answers/--no-answers",
            default=True,
            help="Have the chosen file answer prompts beside the original: do answers end, loop, "
            "call tools?",
        ),
        click.option(
            "--write",
            type=UserPath(Kind.NEW_FILE),
            help="The new recipe; default NAME-tuned.yaml, here. Its page lies beside it.",
        ),
    ],
)


@command("phipipe tune recipes/phi35-cpu-int4.yaml --size 2.2GiB --write tuned.yaml")
@RECIPE
@WISH
@SETS
@ONLY
@LOG_FORMAT
@AS_JSON
def tune(recipe: Path, wish: Wish, sets: Sequence[str], only: Sequence[str], as_json: bool) -> None:
    """Choose the bits of each matrix under a budget, and write them as a recipe.

    What an error in each matrix costs is measured once for a model and a text. What each width
    gets wrong is asked of the backend's own rounding. The best choice at every size follows; a few
    files are built to prove it. Without --size, --bits or --gates the file may be as large as the
    recipe's own is.
    """
    from phipipe.api import tuning
    from phipipe.api.recipes import Recipe
    from phipipe.tuning import aims, recipe_text

    aim = aims.asked(wish.size, wish.bits, gates=wish.gates, builds=wish.builds)
    read = Recipe.load(recipe, sets, only)
    line = subprocess.list2cmdline(["phipipe", *sys.argv[1:]])
    origin = tuning.Origin(name=recipe_text.name_of(read.builds, sets), command=line)
    target = wish.write or Path(f"{origin.name}.yaml")
    tuning.check_target(target)
    effort = tuning.Effort(files=wish.builds, answers=wish.answers)
    place = store_of_user()
    done = tuning.tune_builds(read.builds, aim, effort, place, audience, note, origin)
    page = done.write(target)
    if as_json:
        answers.give(done.to_dict(str(target), str(page)))
    else:
        _show(done, target, page)
    done.check()


def _show(done: Tuning, target: Path, page: Path) -> None:
    echo(f"{done}\n\nrecipe   {target}\npage     {page}\nbuild    phipipe run {target}")

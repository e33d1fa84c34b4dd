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
from phipipe.cli.files import save
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, LOG_FORMAT, RECIPE, SETS, Count, UserPath, taking
from phipipe.cli.workplace import store_of_user
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.tuning.aims import Aim

PAGE = ".html"


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
    from phipipe import backends
    from phipipe.api import tuning
    from phipipe.recipe import loading
    from phipipe.tuning import page, recipe_text

    aim = _aim(wish)
    builds = loading.load(recipe, options=backends.OptionsOf(), sets=sets, only=only)
    target = wish.write or Path(f"{builds[0].recipe.name}-tuned.yaml")
    _check_new(target)
    effort = tuning.Effort(files=wish.builds, answers=wish.answers)
    tuned = tuning.tune(builds, aim, effort, store_of_user(), audience, note)
    line = subprocess.list2cmdline(["phipipe", *sys.argv[1:]])
    drawn = target.with_suffix(PAGE)
    save(target, recipe_text.compose(tuned, target.parent, line))
    save(drawn, page.render(tuned, line))
    if as_json:
        answers.give([tuning.document(one, str(target), str(drawn)) for one in tuned])
        return
    echo("\n\n".join(map(tuning.describe, tuned)))
    echo(f"\nrecipe   {target}\npage     {drawn}\nbuild    phipipe run {target}")


def _aim(wish: Wish) -> Aim:
    """What was asked for.

    Raises:
        RecipeError: more than one thing, or a size that is none.
    """
    from phipipe.tuning import aims

    given = [name for name in ("size", "bits", "gates") if getattr(wish, name)]
    if len(given) > 1:
        raise RecipeError(
            f"--{given[0]} and --{given[1]} exclude each other", hint="give one of them"
        )
    if not given and wish.builds == 1:
        raise RecipeError(
            "--builds 1 leaves no file to compare the recipe's own with",
            hint="allow 2, or say how large the file may be: --size, --bits or --gates",
        )
    size_bytes = None if wish.size is None else aims.size_of(wish.size)
    return aims.Aim(size_bytes=size_bytes, bits=wish.bits, by_gates=wish.gates)


def _check_new(target: Path) -> None:
    """Refuse to write over what is there, before anything is built."""
    for path in (target, target.with_suffix(PAGE)):
        if path.exists():
            raise RecipeError(
                f"`{path}` is there already", hint="name another file with --write, or move it away"
            )

"""The command that draws the steps of a recipe: graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from phipipe.cli.build import ONLY
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import RECIPE, SETS
from phipipe.cli.workplace import store_of_user


@command("phipipe graph recipes/quickstart.yaml --format dot")
@RECIPE
@SETS
@ONLY
@click.option(
    "--format",
    "kind",
    type=click.Choice(["mermaid", "dot"]),
    default="mermaid",
    show_default=True,
    help="Mermaid (Markdown pages show it), or Graphviz' language.",
)
def graph(recipe: Path, sets: Sequence[str], only: Sequence[str], kind: str) -> None:
    """Print the steps of a recipe as a graph; cached steps have a colour of their own.

    Several builds of a matrix share boxes. A dashed arrow is order alone: nothing is read.
    """
    from phipipe.execution import drawing, outlook
    from phipipe.execution.bench import Bench
    from phipipe.planning import plans as planner

    place = store_of_user()
    plans = planner.planned(recipe, sets, only)
    outlooks = outlook.foreseen(plans, Bench(place.store, place.settings, note))
    draw = drawing.mermaid if kind == "mermaid" else drawing.dot
    echo(draw(outlooks, plans[0].build.recipe.name))

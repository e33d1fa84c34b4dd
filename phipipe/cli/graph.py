"""The command that draws the steps of a recipe: graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli.build import ONLY
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import RECIPE, SETS
from phipipe.cli.workplace import store_of_user

if TYPE_CHECKING:
    from phipipe.api.plans import Drawing


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
def graph(recipe: Path, sets: Sequence[str], only: Sequence[str], kind: Drawing) -> None:
    """Print the steps of a recipe as a graph; cached steps have a colour of their own.

    Several builds of a matrix share boxes. A dashed arrow is order alone: nothing is read.
    """
    from phipipe.api import building, plans

    place = store_of_user()
    planned = building.planned(recipe, note, sets=sets, only=only)
    echo(plans.foresee(planned, place, note).graph(kind))

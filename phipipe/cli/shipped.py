"""The commands about the recipes that come with phipipe: recipes ls, show, copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import Listing
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, UserPath

if TYPE_CHECKING:
    from phipipe.output import lists
    from phipipe.recipe.shipped import ShippedRecipe

MAX_NAMED = 2  # values of a column; of more, their number


@click.group(
    cls=Listing,
    invoke_without_command=True,
    epilog="Example:  phipipe recipes copy phi4mini-pi5-int4",
)
@AS_JSON
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """The recipes that come with phipipe: list them, show one, copy one to start from."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes, as_json=as_json)


@recipes.command("ls", epilog="Example:  phipipe recipes ls --device raspberry-pi-5")
@click.option("--device", shell_complete=completions.devices, help="Only recipes for this device.")
@click.option("--model", help="Only recipes whose model has this in its name, such as phi-4-mini.")
@AS_JSON
def list_recipes(
    device: str | None = None, model: str | None = None, as_json: bool = False
) -> None:
    """List the shipped recipes: model, device, backend, precision."""
    from phipipe.cli import tables
    from phipipe.recipe import shipped

    found = shipped.select(device, model)
    if as_json:
        answers.give([_row(one) for one in found])
    elif found:
        echo(tables.table([_cells(one) for one in found]))
    else:
        note(_advice(device))


@recipes.command("show", epilog="Example:  phipipe recipes show quickstart")
@click.argument("name", shell_complete=completions.shipped)
@AS_JSON
def show(name: str, as_json: bool) -> None:
    """Print a shipped recipe."""
    from phipipe.output import lists
    from phipipe.recipe import shipped

    text = shipped.find(name).read_text("utf-8")
    if as_json:
        answers.give(lists.ShippedRecipeDetails(**vars(_row(shipped.load(name))), text=text))
    else:
        echo(text.rstrip("\n"))


@recipes.command("copy", epilog="Example:  phipipe recipes copy quickstart my-first.yaml")
@click.argument("name", shell_complete=completions.shipped)
@click.argument("to", required=False, type=UserPath())
@AS_JSON
def copy(name: str, to: Path | None, as_json: bool) -> None:
    """Copy a shipped recipe, to change it. TO is a new file or a folder; a file that is there
    stays as it is."""
    from phipipe.output import lists
    from phipipe.planning.starter_text import word
    from phipipe.recipe import shipped

    path = shipped.copy(name, to)
    schema = path.parent / shipped.schema_beside(path)
    steps = [f"phipipe plan {word(path)}", f"phipipe run {word(path)}"]
    if as_json:
        answers.give(lists.CopiedRecipe(recipe=str(path), copied_from=name, next=steps))
        return
    echo(f"wrote {path}")
    for number, line in enumerate(steps):
        echo(f"{'then' if number else 'next'}: {line}")
    if not schema.is_file():
        note(f"note: for completion in an editor:  phipipe schema --write {word(schema)}")


def _advice(device: str | None) -> str:
    """What helps where no shipped recipe fits."""
    if device is None:
        return "no shipped recipe has such a model; all of them:  phipipe recipes ls"
    return (
        f"no shipped recipe fits; one of your own:  phipipe init my-recipe.yaml --device {device}"
    )


def _row(one: ShippedRecipe) -> lists.ShippedRecipe:
    from phipipe.output import lists

    return lists.ShippedRecipe(
        recipe=one.name,
        model=one.model,
        devices=list(one.devices),
        backends=list(one.backends),
        precisions=list(one.precisions),
        builds=one.builds,
        tags=list(one.tags),
        summary=one.summary,
    )


def _cells(one: ShippedRecipe) -> dict[str, str]:
    return {
        "recipe": one.name,
        "model": one.model,
        "device": _few(one.devices, "devices"),
        "backend": _few(one.backends, "backends"),
        "precision": _few(one.precisions, "precisions"),
        "summary": one.summary,
    }


def _few(values: tuple[str, ...], what: str) -> str:
    return " ".join(values) if len(values) <= MAX_NAMED else f"{len(values)} {what}"

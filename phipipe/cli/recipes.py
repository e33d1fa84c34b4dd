"""The commands about recipes as files: validate, init, pin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from phipipe import failures
from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, RECIPE, SETS, UserPath
from phipipe.errors import PhipipeError
from phipipe.words import counted


@command("phipipe validate recipes/*.yaml")
@click.argument("recipes", nargs=-1, required=True, type=UserPath())
@SETS
@AS_JSON
def validate(recipes: Sequence[Path], sets: Sequence[str], as_json: bool) -> None:
    """Check recipes: every problem with file, line and column. Touches neither models nor
    network."""
    from phipipe.cli import validation
    from phipipe.planning import targets
    from phipipe.recipe.build import Build

    results: list[tuple[Path, list[Build], PhipipeError | None]] = []
    for path in recipes:
        try:
            results.append((path, targets.checked(path, sets), None))
        except PhipipeError as error:
            results.append((path, [], error))
    for path, builds, wrong in () if as_json else results:
        if wrong is None:
            echo(f"{path}: valid, {counted(len(builds), 'build')}")
    if as_json:
        answers.give([validation.told(*result) for result in results])
    if errors := [wrong for _, _, wrong in results if wrong]:
        raise failures.as_one(errors)


@command("phipipe init my-recipe.yaml --device cpu-x86_64 --precision int4")
@RECIPE
@click.option(
    "--device", default="cpu-x86_64", show_default=True, help="A device, or a device file of yours."
)
@click.option(
    "--precision",
    type=click.Choice(["int4", "int8", "fp16", "fp32"]),
    help="Default: what suits the device.",
)
@click.option("--backend", help="Default: what suits the device's first unit.")
@click.option(
    "--source",
    default="builtin:tiny-phi3",
    show_default=True,
    help="builtin:NAME, a folder, or OWNER/NAME[@REVISION].",
)
@AS_JSON
def init(
    recipe: Path,
    device: str,
    precision: str | None,
    backend: str | None,
    source: str,
    as_json: bool,
) -> None:
    """Write a commented starter recipe that validates and plans."""
    from phipipe.planning import starter

    written, notes = starter.write(
        recipe, device=device, precision=precision, backend=backend, source=source
    )
    for line in notes:
        note(f"note: {line}")
    if as_json:
        answers.give(written)
        return
    what = f"{written.precision} with {written.backend} for {written.device}, {written.unit}"
    echo(f"wrote {recipe}: {what}")
    for i, line in enumerate(written.next):
        echo(f"{'then' if i else 'next'}: {line}")


@command("phipipe pin recipes/phi35-npu-int4.yaml")
@RECIPE
@AS_JSON
def pin(recipe: Path, as_json: bool) -> None:
    """Write the commits that branches are at into a recipe; its comments stay. What is pinned is
    left alone."""
    from phipipe.hub import pin as pins
    from phipipe.output import documents

    pinned = pins.pin(recipe)
    if as_json:
        rows = [
            documents.Pinned(repo=one.repo, revision=one.revision, commit=one.commit)
            for one in pinned
        ]
        answers.give(rows)
        return
    for one in pinned:
        echo(f"{recipe}: {one.repo} {one.revision} → {one.commit}")
    if not pinned:
        named = pins.names_any(recipe)
        words = "every repository is pinned already" if named else "it names no repository of a hub"
        echo(f"{recipe}: {words}")

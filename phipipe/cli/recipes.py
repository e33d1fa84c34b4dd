"""The commands about recipes as files: validate, init, pin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from phipipe import failures
from phipipe.cli import answers, completions
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, RECIPE, SETS, UserPath, taking
from phipipe.errors import PhipipeError
from phipipe.words import counted

DEVICE = "cpu-x86_64"  # what a starter recipe is for unless another is named


@command("phipipe validate recipes/*.yaml")
@click.argument("recipes", nargs=-1, required=True, type=UserPath())
@SETS
@AS_JSON
def validate(recipes: Sequence[Path], sets: Sequence[str], as_json: bool) -> None:
    """Check recipes: every problem with file, line and column. Touches neither models nor
    network."""
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
        from phipipe.cli import validation

        answers.give([validation.told(*result) for result in results])
    if errors := [wrong for _, _, wrong in results if wrong]:
        raise failures.as_one(errors)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a starter recipe is to have; what is None is chosen."""

    device: str | None
    precision: str | None
    backend: str | None
    source: str | None
    text: str | None


WISH = taking(
    "wish",
    Wish,
    [
        click.option(
            "--device",
            shell_complete=completions.devices,
            help="A device (`phipipe devices`), or a device file; default cpu-x86_64.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["int4", "int8", "fp16", "fp32"]),
            help="Default: what suits the device.",
        ),
        click.option(
            "--backend",
            shell_complete=completions.backends,
            help="Default: what suits the device's first unit.",
        ),
        click.option(
            "--source",
            help="The model, where the argument is a recipe's file: builtin:NAME, a folder, a GGUF "
            "or OWNER/NAME[/FILE.gguf][@REVISION].",
        ),
        click.option(
            "--text",
            metavar="FILE|wikitext|stories",
            help="The evaluation text; default: WikiText-2 for the hub's models, else the stories.",
        ),
    ],
)


@command("phipipe init microsoft/Phi-4-mini-instruct --device snapdragon-x-npu")
@click.argument("model", metavar="MODEL|RECIPE", type=UserPath())
@WISH
@AS_JSON
def init(model: Path, wish: Wish, as_json: bool) -> None:
    """Write a commented starter recipe that validates and plans.

    MODEL is OWNER/NAME[/FILE.gguf][@REVISION] of the hub, a folder with a checkpoint or a LoRA
    adapter, a GGUF, or builtin:NAME. The recipe is called after model and device, and pinned to a
    commit. A name that ends in .yaml is the recipe's own; --source then names the model. No file
    is overwritten.
    """
    from phipipe.planning import starter, starter_words
    from phipipe.recipe import device as devices

    devices.load(wish.device or DEVICE, Path())  # a typo there is said before anything else
    parts = (wish.device, wish.precision, wish.backend)
    path, source = starter_words.meant(str(model), wish.source, parts)
    written, notes = starter.write(
        path,
        device=DEVICE if wish.device is None else wish.device,
        precision=wish.precision,
        backend=wish.backend,
        source=source,
        text=wish.text,
    )
    for line in notes:
        note(f"note: {line}")
    if as_json:
        answers.give(written)
        return
    what = f"{written.precision} with {written.backend} for {written.device} (unit {written.unit})"
    echo(f"wrote {path}: {what}")
    for i, line in enumerate(written.next):
        echo(f"{'then' if i else 'next'}: {line}")


@command("phipipe pin recipes/phi35-npu-int4.yaml")
@RECIPE
@AS_JSON
def pin(recipe: Path, as_json: bool) -> None:
    """Write the commits that branches are at into a recipe; its comments stay. What is pinned is
    left alone."""
    from phipipe.hub import pin as pins
    from phipipe.output.recipes import Pinned

    pinned = pins.pin(recipe)
    if as_json:
        rows = [Pinned(repo=one.repo, revision=one.revision, commit=one.commit) for one in pinned]
        answers.give(rows)
        return
    for one in pinned:
        echo(f"{recipe}: {one.repo} {one.revision} → {one.commit}")
    if not pinned:
        named = pins.names_any(recipe)
        words = "every repository is pinned already" if named else "it names no repository of a hub"
        echo(f"{recipe}: {words}")

"""The command that prints schemas: of recipes, and of what other commands print."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.files import content, save
from phipipe.cli.groups import command
from phipipe.cli.options import AS_JSON, UserPath
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind, problem

if TYPE_CHECKING:
    from phipipe.output.lists import SchemaFile

MAX_BYTES = 16 * 2**20  # of a schema


@command("phipipe schema --write schemas/recipe.schema.json")
@click.argument("name", default="recipe", metavar="[NAME]", shell_complete=completions.schemas)
@click.option("--write", "target", type=UserPath(), help="Write to this file instead of stdout.")
@click.option("--check", type=UserPath(), help="Fail if this file is not up to date.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="All schemas; --write and --check then name the folder `schemas`.",
)
@AS_JSON
def schema(name: str, target: Path | None, check: Path | None, every: bool, as_json: bool) -> None:
    """Print a JSON schema: of recipes, for editors' YAML language servers, or of what a command
    prints with --json.

    NAME is `recipe` (the default), or a command such as `plan` or `cache-ls`.
    """
    from phipipe.cli import schemas

    if target is None and check is None:
        answers.give_text(schemas.bundle() if every else schemas.text(name))
        return
    files = schemas.files() if every else {Path(): schemas.text(name)}
    rows = [_write_or_check(path, text, target, check) for path, text in files.items()]
    if as_json:
        answers.give(rows)
    if stale := [row.path for row in rows if not row.fresh]:
        again = f"phipipe schema {'--all' if every else name} --write {check}"
        raise RecipeError(f"{', '.join(f'`{path}`' for path in stale)}: out of date", hint=again)


def _write_or_check(inner: Path, text: str, target: Path | None, check: Path | None) -> SchemaFile:
    """Write the schema ``text``, or compare it with what is there."""
    from phipipe.output.lists import SchemaFile

    path = (target or check or Path()) / inner
    if check is not None:
        there = content(path, MAX_BYTES, "schema", "phipipe schema --write FILE")
        return SchemaFile(path=str(path), fresh=there == text.encode())
    if inner.name and not problem(path.parent, Kind.NEW_FOLDER):
        with contextlib.suppress(OSError):  # `save` says why
            path.parent.mkdir(parents=True, exist_ok=True)
    save(path, text)
    return SchemaFile(path=str(path), fresh=True)

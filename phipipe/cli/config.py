"""The commands about settings: config show, path, trust."""

from __future__ import annotations

from pathlib import Path

import click

from phipipe.cli import answers
from phipipe.cli.groups import Group
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON, UserPath
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind


@click.group(cls=Group, epilog="Example:  phipipe config show")
def config() -> None:
    """The settings that hold here, and the files that they come from.

    A setting is an environment variable, or a line of phipipe.toml in the current folder or one
    above, or a line of your own config.toml. The first of these that sets it counts.
    """


@config.command("show", epilog="Example:  phipipe config show --json")
@AS_JSON
def show(as_json: bool) -> None:
    """Show every setting: its value, where that comes from, and what it is for."""
    from phipipe.cli import facts_of_settings, tables

    rows = facts_of_settings.shown()
    answers.give(rows) if as_json else echo(tables.settings(rows))


@config.command("path", epilog="Example:  phipipe config path")
@AS_JSON
def print_paths(as_json: bool) -> None:
    """Print the files of settings that count here, the stronger first, there yet or not."""
    from phipipe.cli import facts_of_settings, tables

    rows = facts_of_settings.files()
    answers.give(rows) if as_json else echo(tables.settings_files(rows))


@config.command("trust", epilog="Example:  phipipe config trust phipipe.toml")
@click.argument(
    "file",
    required=False,
    type=UserPath(Kind.FILE, missing="file of settings"),
)
def trust(file: Path | None) -> None:
    """Let a project's phipipe.toml decide all settings, until its content changes.

    Without trust it may only set time limits and the toolchain. Read the file first: its settings
    decide where results come from and where they go. Without FILE: the one that counts here.
    """
    from phipipe.settings import config as settings_files

    found = next((one.path for one in settings_files.files() if one.is_project), None)
    path = file or found
    if path is None:
        hint = "write one here, or name it: phipipe config trust FILE"
        raise RecipeError("there is no phipipe.toml in this folder or above", hint=hint)
    settings_files.trust(path)
    echo(f"{path}: trusted as it is now")

"""The commands about toolchains: toolchain ls, install, path."""

from __future__ import annotations

from collections.abc import Sequence

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import Group
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON
from phipipe.cli.workplace import settings_of_user
from phipipe.errors import ToolchainError
from phipipe.words import counted


@click.group(cls=Group, epilog="Example:  phipipe toolchain install onnxruntime")
def toolchain() -> None:
    """The isolated environments that backends run in."""


@toolchain.command("ls", epilog="Example:  phipipe toolchain ls")
@AS_JSON
def list_toolchains(as_json: bool) -> None:
    """List toolchains: installed or not, size, path."""
    from phipipe.cli import facts, tables

    rows = facts.toolchains(settings_of_user())
    answers.give(rows) if as_json else echo(tables.toolchains(rows))


@toolchain.command("install", epilog="Example:  phipipe toolchain install onnxruntime --force")
@click.argument("names", nargs=-1, required=True, shell_complete=completions.toolchains)
@click.option("--force", is_flag=True, help="Remove it first, whatever its state.")
@AS_JSON
def install(names: Sequence[str], force: bool, as_json: bool) -> None:
    """Install toolchains now instead of on first use."""
    from phipipe.cli import facts
    from phipipe.toolchains import environments as toolchains

    for name in names:
        if force:
            toolchains.remove(name, settings_of_user(), note)
        installed = toolchains.ensure(name, settings_of_user(), note)
        if not as_json:
            echo(f"{name}: {counted(len(installed.packages), 'package')}")
    if as_json:
        answers.give([facts.toolchain_row(name, settings_of_user()) for name in names])


@toolchain.command("path", epilog="Example:  $(phipipe toolchain path onnxruntime) -m pip list")
@click.argument("name", shell_complete=completions.toolchains)
@AS_JSON
def print_path(name: str, as_json: bool) -> None:
    """Print the Python of an installed toolchain."""
    from phipipe.cli import facts

    row = facts.toolchain_row(name, settings_of_user())
    if not row.installed:
        raise ToolchainError(
            f"toolchain `{name}` is not installed", hint=f"phipipe toolchain install {name}"
        )
    answers.give(row) if as_json else echo(str(row.python))

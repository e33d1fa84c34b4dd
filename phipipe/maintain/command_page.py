"""The page of commands: every command with its help, as the terminal prints it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from phipipe.cli import cli
from phipipe.cli.groups import SUMMARY
from phipipe.maintain.markdown import page, section, table

WIDTH = 96


def commands() -> str:
    """Every command with its ``--help``."""
    whole = click.Context(cli, info_name="phipipe", **cli.context_settings)
    parts, leaves = [], []
    for heading, several in cli.sections.items():
        named = [(cli.commands[row.name], f"phipipe {row.name}") for row in several]
        found = [leaf for command, path in named for leaf in _leaves(command, whole, path)]
        rows = [
            [f"[`{path}`](#{path.replace(' ', '-')})", command.get_short_help_str(SUMMARY)]
            for path, command, _ in found
        ]
        parts.append(section(heading, table(["command", "does"], rows)))
        leaves += found
    return page(
        "Commands",
        "Data goes to stdout, progress to stderr. `--json` prints [one JSON document](json.md). A "
        "command ends with an [exit code](exit-codes.md) that says how. `phipipe COMMAND --help` "
        "prints what stands here.",
        *parts,
        section("phipipe", _help(cli, whole)),
        *(section(path, _help(command, context)) for path, command, context in leaves),
    )


def _leaves(
    command: click.Command, parent: click.Context, path: str
) -> Iterator[tuple[str, click.Command, click.Context]]:
    name = path.rpartition(" ")[2]
    context = click.Context(command, info_name=name, parent=parent)
    if not isinstance(command, click.Group):
        yield path, command, context
        return
    for inner in command.list_commands(context):
        found = command.get_command(context, inner)
        if found is not None and not found.hidden:
            yield from _leaves(found, context, f"{path} {inner}")


def _help(command: click.Command, context: click.Context) -> str:
    context.terminal_width = context.max_content_width = WIDTH
    return f"```text\n{command.get_help(context).rstrip()}\n```"

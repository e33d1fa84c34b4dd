"""Kinds of commands: how they are declared, listed and found."""

from __future__ import annotations

import importlib
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import TYPE_CHECKING

import click

from phipipe.cli.options import LOUDNESS, Command
from phipipe.cli.table import Row

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SUMMARY = 200  # characters of a command's first sentence that a list shows: all of it


class Group(click.Group):
    """Commands in the order a user meets them, and a suggestion for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0][:100], self.commands, 1)
            guess = f" Did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"{error.message}{guess}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(_summaries(self.commands.values()))


class Loaded(MutableMapping[str, click.Command]):
    """Commands by name, imported when they are asked for; all of them, those below too, have
    ``LOUDNESS``."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._addresses = {row.name: row.address for row in rows}
        self._commands: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._commands:
            module, _, function = self._addresses[name].partition(":")
            command = getattr(importlib.import_module(f"phipipe.cli.{module}"), function)
            for one in (command, *_below(command)):
                one.params.extend(LOUDNESS)
            self._commands[name] = command
        return self._commands[name]

    def __contains__(self, name: object) -> bool:
        return name in self._addresses

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._addresses[name], self._commands[name] = "", command

    def __delitem__(self, name: str) -> None:
        del self._addresses[name]
        self._commands.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)


class Sections(Group):
    """The whole command line: commands under headings."""

    sections: Mapping[str, Sequence[Row]]

    def take(self, sections: Mapping[str, Sequence[Row]]) -> None:
        """Have the commands of ``sections``."""
        self.sections = sections
        self.commands = Loaded(row for rows in sections.values() for row in rows)
        self.params.extend(LOUDNESS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))  # one column for all sections
        for heading, rows in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(row.name.ljust(width), row.summary) for row in rows])


def _summaries(commands: Iterable[click.Command]) -> list[tuple[str, str]]:
    """(name, first sentence) of each command; a sentence that is long goes on in the next line."""
    shown = [command for command in commands if not command.hidden]
    return [(str(c.name), c.get_short_help_str(SUMMARY)) for c in shown]


def _below(command: click.Command) -> Iterator[click.Command]:
    """All commands of a group, of its groups too; none of what is no group."""
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield inner
        yield from _below(inner)


class Listing(Group):
    """A group that lists without a word, and shows what is named: `devices`, `devices show NAME`,
    `devices NAME`."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        name = next(p for p in self.commands["show"].params if isinstance(p, click.Argument))
        return [
            *super().shell_complete(ctx, incomplete),
            *name.shell_complete(ctx, incomplete),
        ]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


def command(example: str) -> Callable[[Command], click.Command]:
    """A command named by its function, whose ``--help`` ends with an example."""

    def declare(function: Command) -> click.Command:
        name = function.__name__.rstrip("_")
        return click.command(name, epilog=f"Example:  {example}")(function)

    return declare

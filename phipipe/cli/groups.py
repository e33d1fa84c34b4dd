"""Kinds of commands: how they are declared, listed and found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from phipipe.cli.options import LOUDNESS, Command

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


class Sections(Group):
    """The whole command line: commands under headings."""

    sections: Mapping[str, Sequence[click.Command]]

    def take(self, sections: Mapping[str, Sequence[click.Command]]) -> None:
        """Have the commands of ``sections``; give all, those below too, ``LOUDNESS``."""
        self.sections = sections
        for command in (command for commands in sections.values() for command in commands):
            self.add_command(command)
        for command in (self, *_below(self)):
            command.params.extend(LOUDNESS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))  # one column for all sections
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                rows = [(name.ljust(width), words) for name, words in _summaries(commands)]
                formatter.write_dl(rows)


def _summaries(commands: Iterable[click.Command]) -> list[tuple[str, str]]:
    """(name, first sentence) of each command; a sentence that is long goes on in the next line."""
    shown = [command for command in commands if not command.hidden]
    return [(str(c.name), c.get_short_help_str(SUMMARY)) for c in shown]


def _below(group: click.Group) -> Iterator[click.Command]:
    """All commands of ``group``, of its groups too."""
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _below(command)


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

"""Kinds of commands: how they are declared, listed and found."""

from __future__ import annotations

from collections.abc import Callable

import click

from phipipe.cli.options import Command


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


class Listing(Group):
    """A group that lists without a word, and shows what is named: `devices`, `devices show NAME`,
    `devices NAME`."""

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

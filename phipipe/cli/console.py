"""What every command of the command line shares: the group, the settings, and how to print."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phipipe import __version__
from phipipe.errors import PhipipeError, RecipeError
from phipipe.files.user_paths import Kind, problem, shown
from phipipe.visible import json_text, visible

if TYPE_CHECKING:
    from phipipe.run.manner import Engine
    from phipipe.settings import Settings
    from phipipe.store.store import Store

MAX_MISUSED = 4000  # characters: what a command line that was mistaken for another may repeat
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")


class Count(click.IntRange):
    """A whole number, called so where it is none."""

    name = "whole number"


class UserPath(click.Path):
    """A path on the command line: refused with ``error`` where it cannot be the ``kind`` that is
    meant.

    One that is to be read and is missing is refused too where ``missing`` says what there is none
    of. Without a ``kind``, who reads it looks at it (and says what else is wrong, as for several
    recipes).
    """

    def __init__(
        self,
        kind: Kind | None = None,
        error: type[PhipipeError] = RecipeError,
        missing: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(path_type=Path)
        self._kind, self._error, self._missing, self._hint = kind, error, missing, hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path, option = Path(os.fsdecode(value)), _option(param)
        if not str(value):
            raise self._error(f"{option or 'a path'} is empty", hint="give a path")
        before = f"{option}: " if option else ""
        if self._kind and (odd := problem(path, self._kind)):
            another = f"choose another {option}" if option else "give another path"
            raise self._error(f"{before}`{shown(path)}` {odd}", hint=self._hint or another)
        if self._missing and not path.exists():
            raise self._error(
                f"{before}there is no {self._missing} at `{path}`", hint="check the path"
            )
        return path


def _option(param: click.Parameter | None) -> str | None:
    """The option that a path is given to; None for an argument."""
    return param.opts[0] if isinstance(param, click.Option) else None


def _log_as(context: click.Context, parameter: click.Parameter, value: str) -> bool:
    global _events
    _events = value == "json"
    return _events


_events = False  # whether stderr gets JSON objects
LOG_FORMAT = click.option(
    "--log-format",
    "as_events",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    callback=_log_as,
    help="What stderr gets: lines for people, or events as JSON, one per line.",
)


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


def command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand whose ``--help`` ends with an example."""

    def register(function: Callable[..., None]) -> click.Command:
        name = function.__name__.rstrip("_")
        return cli.command(name, epilog=f"Example:  {example}")(function)

    return register


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="phipipe")
def cli() -> None:
    """One recipe in, one verified artifact out: small language models for edge devices."""


def settings_of_user() -> Settings:
    from phipipe.settings import Settings

    return Settings.read()


def store_of_user() -> tuple[Settings, Store]:
    from phipipe.store.store import Store

    settings = settings_of_user()
    return settings, Store(settings.cache, notify=note)


ON = click.option(
    "--on", metavar="dask://HOST:PORT", help="Have steps done by the workers of a Dask scheduler."
)


def engine_of(on: str | None) -> Engine | None:
    """What does the steps of a run ``--on`` somewhere; None for this machine."""
    if on is None:
        return None
    from phipipe.cluster import client

    return client.engine(on)


def planning_on(on: str | None) -> AbstractContextManager[None]:
    """While this lasts, plans know the machines that a run ``--on`` somewhere has."""
    if on is None:
        return nullcontext()
    from phipipe import hardware
    from phipipe.cluster import client

    return hardware.there(client.machines(on, note))


def note(line: str) -> None:
    if _events:
        _event("note", text=line)
    else:
        click.echo(visible(line), err=True)


def _event(kind: str, /, **told: object) -> None:
    from phipipe.run.events import now

    click.echo(
        json_text({"event": kind, "time": now(), **told}, encoding=sys.stderr.encoding), err=True
    )


def echo(text: str) -> None:
    """Print lines for people."""
    click.echo(visible(text))


def save(path: Path, text: str) -> None:
    """Write ``text``, as it is, to the file that the user named.

    Raises:
        RecipeError: the system does not let us.
        StoreError: there is no room.
    """
    if odd := problem(path, Kind.NEW_FILE):
        raise RecipeError(f"cannot write `{shown(path)}`: it {odd}", hint="give another path")
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        from phipipe.store import free_space

        if error.errno in free_space.FULL:
            full = [free_space.Folder(path.parent, free_space.KEEP_OUT)]
            raise free_space.error(
                full, reason=str(error.strerror), needed_bytes=len(text)
            ) from None
        raise RecipeError(
            f"cannot write `{path}`: {error.strerror}", hint="give another path"
        ) from None


def complain(error: PhipipeError) -> None:
    if _events:
        from phipipe.run.events import failure

        _event("error", **failure(error))
        return
    color = False if os.environ.get("NO_COLOR") else None  # None: colour on a terminal
    click.echo(
        click.style("error: ", fg="red", bold=True) + visible(error.message), err=True, color=color
    )
    if error.hint:
        click.echo(click.style("  try: ", fg="cyan") + visible(error.hint), err=True, color=color)


def misused(error: click.ClickException) -> None:
    """Say what click found wrong with the command line."""
    said = io.StringIO()
    error.show(said)
    text = visible(said.getvalue())
    click.echo(text if len(text) <= MAX_MISUSED else f"{text[:MAX_MISUSED]}…\n", err=True, nl=False)

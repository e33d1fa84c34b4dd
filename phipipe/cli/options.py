"""Options and arguments that commands share, and the types of their values."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from phipipe import progress
from phipipe.cli import completions
from phipipe.cli.messages import LOG, show_log
from phipipe.errors import PhipipeError, RecipeError, SourceError
from phipipe.files.user_paths import Kind, problem, shown

MAX_GIB = 2.0**30  # no disk of anybody's

Command = Callable[..., None]


class Count(click.IntRange):
    """A whole number, called so where it is none."""

    name = "whole number"


class Gib(click.FloatRange):
    """A size: not negative, and a number that a disk can have."""

    name = "number of GiB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no size.", param, ctx)
        return min(number, MAX_GIB)


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


def taking(
    name: str, kind: type, options: Sequence[Callable[[Command], Command]]
) -> Callable[[Command], Command]:
    """A decorator: the command takes these ``options`` as one value ``name`` of the data class
    ``kind``."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def packed(**given: Any) -> None:
            value = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            function(**{name: value}, **given)

        command: Command = packed
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _log_as(context: click.Context, parameter: click.Parameter, value: str) -> None:
    LOG.as_events = value == "json"


def _loudness(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        setattr(LOG, str(parameter.name), True)
    if LOG.quiet and LOG.verbose:
        raise click.UsageError("--quiet and --verbose exclude each other; give one", context)
    progress.follow(show_log if LOG.verbose else None)


def _accepted(context: click.Context, parameter: click.Parameter, package: Path) -> Path:
    """What a batch accepted last, where ``package`` is the folder of all versions of a build."""
    from phipipe.package import versions

    return versions.accepted(package)


LOUDNESS = (  # of every command
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_loudness,
        help="Print results and errors alone: no progress, notes or warnings.",
    ),
    click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_loudness,
        help="Print on stderr also what steps write while they run.",
    ),
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")
RECIPE = click.argument("recipe", type=UserPath())
PACKAGE = click.argument(
    "package",
    type=UserPath(
        Kind.FOLDER,
        SourceError,
        hint="a package is a folder that `phipipe run RECIPE` writes; unpack an archive first",
    ),
    callback=_accepted,
)
SETS = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completions.sets,
    help="Override a recipe value, of all variants; repeatable.",
)
JOBS = click.option(
    "--jobs", type=Count(min=1), help="Steps side by side; default from cores and memory."
)
ON = click.option(
    "--on", metavar="dask://HOST:PORT", help="Have steps done by the workers of a Dask scheduler."
)
PUBLISH = click.option(
    "--publish/--no-publish",
    default=True,
    show_default=True,
    help="Whether packages go where recipes publish them.",
)
LOG_FORMAT = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    callback=_log_as,
    expose_value=False,
    help="What stderr gets: lines for people, or events as JSON, one per line.",
)

"""What commands say: lines for people on stdout and stderr, or events as JSON on stderr."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import TextIO

import click

from phipipe import progress
from phipipe.errors import PhipipeError
from phipipe.visible import json_text, visible

MAX_MISUSED = 4000  # characters: what a command line that was mistaken for another may repeat


@dataclass
class Log:
    """What the process's stderr gets, which is one for all threads: lines for people, or events as
    JSON, one per line.

    ``quiet``: errors alone. ``verbose``: also what steps write while they run.
    """

    as_events: bool = False
    quiet: bool = False
    verbose: bool = False

    def reset(self) -> None:
        """A command line starts: nothing is asked for yet."""
        self.as_events = self.quiet = self.verbose = False
        progress.follow(None)

    @property
    def silent(self) -> bool:
        """Whether nobody reads how a run goes on."""
        return self.as_events or self.quiet

    @property
    def stream(self) -> TextIO | None:
        """Where a run's events go as JSON; None: nowhere."""
        return sys.stderr if self.as_events and not self.quiet else None


LOG = Log()


def echo(text: str) -> None:
    """Print lines for people on stdout; on a terminal a table's heads are bold."""
    heads = getattr(text, "heads", 0)
    if not heads or os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        click.echo(visible(text))
        return
    lines = visible(text).split("\n")
    bold = [click.style(line, bold=True) for line in lines[:heads]]
    click.echo("\n".join([*bold, *lines[heads:]]))


def note(line: str, *, is_error: bool = False) -> None:
    """Say something beside the command's answer, on stderr; to a ``quiet`` user errors alone."""
    if LOG.quiet and not is_error:
        return
    if LOG.as_events:
        _event("note", text=line)
    else:
        click.echo(visible(line), err=True)


def show_log(step: str, line: str) -> None:
    """Repeat a ``line`` that a ``step`` wrote."""
    if LOG.as_events:
        _event("log", step=step, text=line)
    else:
        click.echo(visible(f"  {step} | {line}"), err=True)


def complain(error: PhipipeError) -> None:
    """Say what went wrong and what to try, on stderr."""
    if LOG.as_events:
        from phipipe.execution.events import failure

        _event("error", **failure(error))
        return
    color = False if os.environ.get("NO_COLOR") else None  # None: colour on a terminal
    head = click.style("error: ", fg="red", bold=True)
    click.echo(head + visible(error.message), err=True, color=color)
    if error.hint:
        click.echo(click.style("  try: ", fg="cyan") + visible(error.hint), err=True, color=color)


def misused(error: click.ClickException) -> None:
    """Say what click found wrong with the command line."""
    stream = io.StringIO()
    error.show(stream)
    text = visible(stream.getvalue())
    click.echo(text if len(text) <= MAX_MISUSED else f"{text[:MAX_MISUSED]}…\n", err=True, nl=False)


def _event(kind: str, /, **fields: object) -> None:
    from phipipe.execution.events import now

    event = {"event": kind, "time": now(), **fields}
    click.echo(json_text(event, encoding=sys.stderr.encoding), err=True)

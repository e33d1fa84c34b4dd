"""The one JSON document that a command with ``--json`` prints: on stdout, also where it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from phipipe import output
from phipipe.output import Error, Failure

_asked = False  # whether this command is to answer in JSON
_given = False  # whether it has


def begin(words: Sequence[str]) -> None:
    """A command line starts; ``words`` are its words. It may be too wrong for options to be read from it."""
    global _asked, _given
    before = words[: words.index("--")] if "--" in words else words
    _asked, _given = "--json" in before, False


def give(document: Any) -> None:
    """Print the command's document."""
    give_text(json.dumps(output.plain(document), indent=2, ensure_ascii=False))


def give_text(text: str) -> None:
    """Print the command's document, which is JSON already."""
    global _given
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # JSON can say everything in ASCII
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text.rstrip("\n"))
    _given = True


def fail(error: Error) -> None:
    """Print why the command failed, if JSON was asked for and nothing was printed yet."""
    if _asked and not _given:
        give(Failure(error=error))

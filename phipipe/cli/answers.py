"""The one JSON document that a command with ``--json`` prints: on stdout, also where it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from phipipe.visible import json_again, json_text

if TYPE_CHECKING:
    from phipipe.output.documents import Error

_asked = False  # whether this command is to answer in JSON
_given = False  # whether it has


def begin(words: Sequence[str]) -> None:
    """A command line starts; ``words`` are its words. It may be too wrong for options to be read
    from it."""
    global _asked, _given
    before = words[: words.index("--")] if "--" in words else words
    _asked, _given = any(word.partition("=")[0] == "--json" for word in before), False


def give(document: object) -> None:
    """Print the command's document."""
    from phipipe.output import documents

    global _given
    click.echo(json_text(documents.plain(document), indent=2, encoding=sys.stdout.encoding))
    _given = True


def give_text(text: str) -> None:
    """Print the command's document, which is a JSON file's own text."""
    global _given
    click.echo(json_again(text), nl=False)
    _given = True


def fail(error: Error) -> None:
    """Print why the command failed, if JSON was asked for and nothing was printed yet."""
    if _asked and not _given:
        from phipipe.output.documents import Failure

        give(Failure(error=error))

"""``board.json``: the board's entries as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from phipipe import __version__
from phipipe.board import board
from phipipe.board.entry import Entry, complaint, one_line
from phipipe.errors import SourceError
from phipipe.evaluate import reports
from phipipe.files import json_files
from phipipe.steps import Json

TYPE = "phipipe-board"
FORMAT = 1
_HINT = "`phipipe run` writes board.json beside the packages"


def dump(entries: Iterable[Entry]) -> str:
    """The text of ``board.json``: the entries, and the answers that follow from them."""
    every = board.ranked(entries)
    content = {
        "type": TYPE,
        "format": FORMAT,
        "phipipe": __version__,
        "entries": [asdict(entry) for entry in every],
        "picks": [asdict(answer) for answer in board.answers(every)],
    }
    return reports.dump(content)


def load(text: str) -> list[Entry]:
    """The entries of a ``board.json``.

    Raises:
        SourceError: it is something else, damaged, or a newer phipipe wrote it.
    """
    content = _content(text)
    try:
        # by way of text, in which lists stand for tuples, too
        entries = TypeAdapter(list[Entry]).validate_json(json.dumps(content["entries"]))
    except ValidationError as error:
        raise SourceError(
            f"this board is damaged: `entries.{one_line(reports.place(error))}` is not as phipipe "
            f"writes it",
            hint=_HINT,
        ) from None
    for entry in entries:
        if wrong := complaint(entry):
            raise SourceError(
                f"this board is damaged: `{one_line(entry.name)}` {wrong}", hint=_HINT
            )
    return entries


def _content(text: str) -> Mapping[str, Json]:
    """The object in ``text``, if it is a board of a format that is known."""
    try:
        content = json_files.parse(text.encode("utf-8", "replace"), Path("board.json"))
    except SourceError as error:
        why = error.message.partition(" is not valid JSON: ")[2]
        raise SourceError(
            f"this is no board of phipipe: it is not valid JSON: {why}", hint=_HINT
        ) from None
    if not isinstance(content, dict) or content.get("type") != TYPE:
        raise SourceError(f"this is no board of phipipe: its `type` is not `{TYPE}`", hint=_HINT)
    version = content.get("format")
    if type(version) is int and version > FORMAT:
        raise SourceError(
            f"this board was made by a newer phipipe: its format is {version}, this phipipe "
            f"reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    if (
        type(version) is not int
        or version != FORMAT
        or not isinstance(content.get("entries"), list)
    ):
        raise SourceError(
            "this board is damaged: it has no known format, or no entries", hint=_HINT
        )
    return content

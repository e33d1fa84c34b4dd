"""Builds side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from phipipe.api import pages, workplace
from phipipe.api.measurements import ImportedSpeeds, Measurement
from phipipe.api.packages import Package
from phipipe.api.results import Result, Results
from phipipe.api.workplace import Note, UserPath, path_of
from phipipe.board import board, file, gathering, text
from phipipe.board.candidates import Answer
from phipipe.board.entry import Entry
from phipipe.errors import SourceError
from phipipe.files.user_paths import Kind
from phipipe.metrics import METRICS
from phipipe.package import figures
from phipipe.steps import Json
from phipipe.visible import visible
from phipipe.words import counted

TITLE = "Fidelity board"
SHOWN = tuple(METRICS[name] for name in ("size_gib", "kld_mean", "top1", "decode_tokens_per_s"))


Item: TypeAlias = "Package | Results | Result | ImportedSpeeds | Board | UserPath"


class Board:
    """Several builds of one model side by side, and which of them to ship.

    ``print(board)`` shows it as ``phipipe compare`` does.

    Attributes:
        entries: the builds with all that was measured, failed ones last.
    """

    def __init__(self, *items: Item, on_note: Note | None = None) -> None:
        """Put ``items`` side by side: packages, results of runs, measurements, other boards, and
        paths (of packages, of ``board.json``, of folders that hold one or are full of packages).

        Args:
            items: what stands side by side.
            on_note: gets what is doubtful about a package; without it, it is a warning of Python's.

        Raises:
            SourceError: a path is none of these, a package was changed, or the builds do not
                compare: another model, another text.
        """
        if not items:
            raise SourceError("a board needs builds", hint="phipipe.Board('packages')")
        note = on_note or workplace.warned
        every = gathering.joined(entry for item in items for entry in _entries(item, note))
        board.check_comparable(every)
        self.entries: tuple[Entry, ...] = tuple(board.ranked(every))

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What to ship to each device: ``device``, ``picks`` by aim, ``line`` in words."""
        return board.answers(self.entries)

    @property
    def rows(self) -> list[dict[str, str | float | None]]:
        """A flat row for each build: what it is, its error, and its figures by the metrics' names.

        ``pandas.DataFrame(board.rows)`` makes a table of them.
        """
        return [
            {
                "name": entry.name,
                "device": entry.device,
                "backend": entry.backend,
                "precision": entry.precision,
                "scheme": entry.scheme,
                "on_target": entry.on_target,
                "error": entry.error,
                **entry.metrics,
            }
            for entry in self.entries
        ]

    def report(self) -> str:
        """The text of ``board.json``."""
        return file.dump(self.entries)

    def to_dict(self) -> Json:
        """The content of ``board.json``."""
        return json.loads(self.report())

    def write(self, folder: UserPath, title: str = TITLE) -> Path:
        """Write ``board.json``, ``board.md`` and ``board.html`` into ``folder``.

        Returns:
            The page's path.

        Raises:
            StoreError: the folder cannot be written, or is a package.
        """
        place = path_of(folder, Kind.NEW_FOLDER, "the board's folder")
        return gathering.write(self.entries, place, title)

    def __repr__(self) -> str:
        return f"<Board of {counted(len(self.entries), 'build')}>"

    def __str__(self) -> str:
        return visible("\n".join([text.table(self.entries), "", *text.advice(self.entries)]))

    def _repr_html_(self) -> str:
        lines = "".join(map(pages.paragraph, board.lines(self.answers)))
        head = ("build", "device", "backend", *(metric.heading for metric in SHOWN))
        return lines + pages.table(head, map(_row, self.entries))


def _entries(item: Item, note: Note) -> Iterable[Entry]:
    if isinstance(item, Board):
        return item.entries
    if isinstance(item, Results):
        return [entry for result in item for entry in _entries(result, note)]
    if isinstance(item, Measurement | ImportedSpeeds):
        return [item.entry]
    if isinstance(item, Result):
        return gathering.of_outcomes([item.outcome])
    if isinstance(item, Package):
        return gathering.of_paths([item.path], note)
    return gathering.of_paths([path_of(item, Kind.EITHER, "a path", SourceError)], note)


def _row(entry: Entry) -> list[str]:
    scheme = entry.scheme or entry.precision
    told = [entry.name, entry.device, f"{entry.backend} {scheme}"]
    if entry.error is not None:
        return [*told, f"failed: {entry.error}", *("" for _ in SHOWN[1:])]
    return [*told, *(_cell(entry, metric.name) for metric in SHOWN)]


def _cell(entry: Entry, name: str) -> str:
    if name not in entry.metrics:
        return "–"
    shown = figures.shown(METRICS[name], entry.metrics[name], entry.stderr.get(name))
    return " ".join(shown).rstrip()

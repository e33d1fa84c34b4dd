"""What made each result: ``actions/<key>.json``, each with a digest of itself."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.steps import Json
from phipipe.store import files, keys, refusals

LEFT = "left"  # the folder of what trees left that were let go


class Damaged(StoreError):
    """A stored tree or record is not what was stored. It has been put aside; making it again is all
    that is needed."""

    DETAILS = ("digest",)

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(message, hint="run the same command again: it is built anew")
        self.digest = digest

    @property
    def digests(self) -> tuple[str, ...]:
        """Of all trees that must be made again."""
        return tuple(self.digest.split())


class LetGo(Damaged):
    """Stored trees are needed that were let go on purpose (``letting_go``). Making ``digests``
    again is all that is needed."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(f"the result {digests[0][:12]} was not kept", " ".join(digests))


class NoRecord(StoreError):
    """There is no record under this key."""


@dataclass(frozen=True)
class Stored:
    """A result: where it lies, and size and time of each file as they were when it was stored.

    ``place`` is the folder of the user's where files lie that were never copied. ``left`` names
    what is still in ``path`` of a tree that was let go; None: all of it.
    """

    key: str
    digest: str
    path: Path
    outputs: tuple[Mapping[str, Json], ...]  # path, size, sha256, mtime_ns
    place: Path | None = None
    left: tuple[str, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the store has, or should have, all of its files."""
        return self.place is None and self.left is None

    @property
    def size_bytes(self) -> int:
        return sum(int(output["size"]) for output in self.outputs)


@dataclass(frozen=True)
class Usage:
    """One row of ``cache ls``."""

    key: str
    runs: str
    size_bytes: int  # in the store
    created: datetime.datetime
    used: datetime.datetime
    # "stored"; "in place": read where the user has it; "let go": made again when it is needed
    state: str = "stored"


class Records:
    """The records of the store in ``root``."""

    def __init__(self, root: Path) -> None:
        self._root, self.folder = root, root / "actions"

    def path(self, key: str) -> Path:
        """Where the record of ``key`` is, or will be."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> dict[str, Json]:
        """The record of ``key``, intact.

        Raises:
            NoRecord: there is none.
            Damaged: it was changed since it was written.
            StoreError: it cannot be looked at.
        """
        try:
            raw = files.read_plain(self.path(key))
        except FileNotFoundError:
            raise NoRecord(f"nothing is stored under {key[:12]}") from None
        except OSError as error:
            if error.errno == errno.EIO:
                raise Damaged(f"the record {key[:12]} cannot be read", "") from error
            raise refusals.describe(error, self._root) from error
        try:
            return keys.open_record(raw, key)
        except StoreError:
            raise Damaged(f"the record {key[:12]} is damaged", "") from None

    def read_all(self, newest: int | None = None) -> Iterator[dict[str, Json]]:
        """All intact records by key; or so many, the ``newest`` first."""
        paths = sorted(self.folder.glob("*.json"))
        if newest is not None:
            paths = sorted(paths, key=files.modified_ns, reverse=True)[:newest]
        for path in paths:
            with contextlib.suppress(NoRecord, Damaged):
                yield self.read(path.stem)

    def result(self, record: Mapping[str, Json]) -> Stored:
        """The result that ``record`` tells of."""
        left, place = record.get("left"), record.get("place")
        path = self._root / ("objects" if left is None else LEFT) / record["digest"]
        return Stored(
            record["key"],
            record["digest"],
            path,
            tuple(record["outputs"]),
            place=None if place is None else Path(place),
            left=None if left is None else tuple(left),
        )

    def enter(self, written: Path, key: str) -> None:
        """Make the file ``written``, which is flushed, the record of ``key``."""
        written.replace(self.path(key))
        files.flush_folder(self.folder)

    def mark_used(self, key: str) -> None:
        """Remember that ``key`` is used now: collections take first what was not for longest."""
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's
            os.utime(self.path(key), ns=(time.time_ns(),) * 2)

    def last_uses(self) -> dict[Path, tuple[str, int]]:
        """Path of each record → digest of its object ("": the record is damaged), time of its last
        use in nanoseconds."""
        uses = {}
        for path in self.folder.iterdir():
            digest = ""
            with contextlib.suppress(FileNotFoundError, NoRecord):
                moment = path.stat().st_mtime_ns
                with contextlib.suppress(Damaged):
                    digest = str(self.read(path.stem)["digest"])
                uses[path] = (digest, moment)
        return uses

    def apart(self) -> set[Path]:
        """Paths of the records whose results have no tree, and should have none."""
        return {self.path(r["key"]) for r in self.read_all() if not self.result(r).is_whole}

    def usage(self) -> list[Usage]:
        """One row per record."""
        rows = []
        for record in self.read_all():
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                used = datetime.datetime.fromtimestamp(
                    self.path(record["key"]).stat().st_mtime, datetime.UTC
                )
                created = datetime.datetime.fromisoformat(record["created"])
                rows.append(_usage(self.result(record), str(record.get("runs", "")), created, used))
        return rows


def outputs_of(
    entries: Iterable[keys.FileEntry], times: Mapping[str, int]
) -> list[dict[str, Json]]:
    """The files of a tree as its record lists them; ``times`` in nanoseconds."""
    return [
        {"path": e.path, "size": e.size, "sha256": e.sha256, "mtime_ns": times[e.path]}
        for e in entries
    ]


def _usage(stored: Stored, runs: str, created: datetime.datetime, used: datetime.datetime) -> Usage:
    if stored.is_whole:
        return Usage(stored.key, runs, stored.size_bytes, created, used)
    if stored.place is not None:
        return Usage(stored.key, runs, 0, created, used, "in place")
    return Usage(stored.key, runs, files.size_of(stored.path), created, used, "let go")

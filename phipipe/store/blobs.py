"""Files in a shared store, by content: ``blobs/<sha256>``, and ``blobs/<sha256>.0`` and so on for
the pieces of a large one, so that what is cut short goes on from the last one."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from phipipe import progress
from phipipe.store import files, refusals
from phipipe.store.keys import FileEntry
from phipipe.words import MIB

if TYPE_CHECKING:
    from phipipe.store.bucket import Bucket

# Bytes of an object at most: what a dying connection costs. Another number is another layout.
PIECE = 16 * 2**20
UPLOADS = 4  # pieces that are sent side by side
PARTS_DAYS = 7  # unfinished downloads that nobody has gone on with for so long are removed


class Unfit(Exception):
    """Something there is not what it should be."""


class Piece(NamedTuple):
    """An object, and at which bytes of its file it begins and ends."""

    name: str
    start: int
    end: int


class Blobs:
    """Files in ``bucket``."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._unfit: set[str] = set()  # objects there whose content was found wrong

    def download(self, entry: FileEntry, parts: Path, target: Path) -> None:
        """A file's content, from where an earlier run was cut short: what that has is in ``parts``.

        Raises:
            Unfit: it is gone, or has another content.
            StoreError: the disk takes no more.
        """
        parts.mkdir(parents=True, exist_ok=True)
        _sweep(parts)
        part = parts / entry.sha256
        with FileLock(parts / f"{entry.sha256}.lock"):
            if self._complete(part, entry) != entry.sha256:
                part.unlink()
                self._unfit.update(piece.name for piece in pieces(entry.sha256, entry.size))
                raise Unfit(f"`{entry.path}` has another content")
            part.replace(target)

    def _complete(self, part: Path, entry: FileEntry) -> str:
        """Append to ``part`` what is missing of ``entry``; SHA-256 of all, in hex."""
        digest, at = hashlib.sha256(), 0
        with part.open("a+b") as stream:
            stream.seek(0)
            while earlier := stream.read(MIB):
                digest.update(earlier)
                at += len(earlier)
            for content in self._rest(entry, at):
                with refusals.guard(part.parent.parent, entry.size - at):
                    stream.write(content)
                digest.update(content)
                at += len(content)
                _report(at, entry.size)
        return digest.hexdigest()

    def _rest(self, entry: FileEntry, at: int) -> Iterator[bytes]:
        """The content of ``entry`` from byte ``at`` on."""
        for piece in pieces(entry.sha256, entry.size):
            if piece.end > at:
                yield self._read(piece, max(0, at - piece.start))

    def _read(self, piece: Piece, start: int) -> bytes:
        """The content of ``piece`` from its byte ``start`` on.

        Raises:
            Unfit: it is not there, or not all of it.
        """
        size = piece.end - piece.start
        content = self._bucket.range(piece.name, start, size)
        if content is None:
            raise Unfit(f"`{piece.name[:18]}` is gone")
        if len(content) != size - start:
            self._unfit.add(piece.name)
            raise Unfit(f"`{piece.name[:18]}` is cut short")
        return content

    def upload(self, sha256: str, path: Path, size: int) -> None:
        """A file, or what is missing of it."""
        all_pieces = pieces(sha256, size)
        if len(all_pieces) == 1:
            self._write(path, all_pieces[0])
            return
        with ThreadPoolExecutor(UPLOADS) as pool:
            for end in pool.map(lambda piece: self._write(path, piece), all_pieces):
                _report(end, size)

    def _write(self, path: Path, piece: Piece) -> int:
        """Share a piece of a file, unless it is there: then it is the same, whoever wrote it.
        Returns where in the file it ends."""
        size = piece.end - piece.start
        if piece.name in self._unfit or self._bucket.size(piece.name) != size:
            with path.open("rb") as stream:
                stream.seek(piece.start)
                self._bucket.put(piece.name, stream.read(size), replace=True)
            self._unfit.discard(piece.name)
        return piece.end


def pieces(sha256: str, size: int) -> list[Piece]:
    """The objects that hold a file's content."""
    if size <= PIECE:
        return [Piece(f"blobs/{sha256}", 0, size)]
    starts = range(0, size, PIECE)
    return [
        Piece(f"blobs/{sha256}.{i}", start, min(start + PIECE, size))
        for i, start in enumerate(starts)
    ]


def _report(done: int, size: int) -> None:
    if size > PIECE:
        progress.report(done // MIB, size // MIB, "MiB")


def _sweep(parts: Path) -> None:
    """Remove unfinished downloads that are old."""
    oldest = time.time() - 86400 * PARTS_DAYS
    for path in parts.glob("*"):
        with contextlib.suppress(OSError):
            if path.suffix not in (".lock", ".shared") and path.stat().st_mtime < oldest:
                files.remove(path)

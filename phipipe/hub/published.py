"""A file as its publisher describes it, and as much of it as is here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

CHUNK = 2**20  # of what is read from a disk


@dataclass(frozen=True, order=True)
class Published:
    """A file as its publisher describes it; ``algorithm`` is "sha256" or "git-sha1", ``size`` in
    bytes."""

    name: str
    size: int
    algorithm: str
    digest: str

    def hash(self) -> hashlib._Hash:
        """A fresh hash object for this file's content."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)  # git names a blob so

    def matches(self, path: Path) -> bool:
        """Whether the file at ``path`` is this one, to the bit; False where there is none."""
        try:
            if path.stat().st_size != self.size:
                return False
            digest = self.hash()
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
        except FileNotFoundError:
            return False
        return bool(digest.hexdigest() == self.digest)


class Part:
    """The partial file: what is in it, hashed so far."""

    def __init__(self, path: Path, file: Published) -> None:
        self.path, self.file = path, file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._read()

    def _read(self) -> None:
        self.hash, self.position = self.file.hash(), 0
        if os.fstat(self._stream.fileno()).st_size > self.file.size:
            self._stream.truncate(0)
        self._stream.seek(0)
        while chunk := self._stream.read(CHUNK):
            self.hash.update(chunk)
            self.position += len(chunk)

    def write(self, data: bytes) -> None:
        """Append; nothing stays in this process's memory."""
        view = memoryview(data)
        while view:
            count = self._stream.write(view)
            self.hash.update(view[:count])
            self.position += count
            view = view[count:]

    def empty(self) -> None:
        """Begin anew."""
        self._stream.truncate(0)
        self._read()

    def close(self) -> None:
        """Close the file; what it has stays."""
        self._stream.close()

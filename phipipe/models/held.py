"""Folders that are known by what some of their files hold: what was found of one holds for every
other with the same content, so many builds of few models read it once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from phipipe.files.json_files import MAX_BYTES
from phipipe.store import keys


@dataclass(frozen=True)
class Held:
    """A ``folder``; equal to others by the ``digest`` of its files alone."""

    digest: str
    folder: Path = field(compare=False)


def by(names: Iterable[str], folder: Path) -> Held:
    """``folder`` by the content of those of the files ``names`` that it has."""
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            digest.update(f"{name} {_content(folder / name)}\n".encode())
    return Held(digest.hexdigest(), folder)


def _content(path: Path) -> str:
    """What tells the file's content from others; of one that cannot be read, its place."""
    with contextlib.suppress(OSError):
        if path.stat().st_size <= MAX_BYTES:
            return keys.hash_file(path)
    return str(path)

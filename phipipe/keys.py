"""What decides a step's bytes, as one digest: canonical JSON, file digests, tree digests, step keys."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phipipe.errors import StoreError

FORMAT = 1
"""Part of every key: raise it when the meaning of records changes, and old ones are ignored, never misread."""

_CHUNK = 4 * 2**20
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file of a tree: POSIX path relative to it, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def canonical(value: Any) -> bytes:
    """JSON bytes that are the same for the same meaning: sorted keys, no spaces, NFC text.

    A float that is a whole number is written as one: 1 and 1.0 mean the same to every step.

    Raises:
        StoreError: the value is not JSON (NaN, a key that is no string, some object).
    """
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        items = {unicodedata.normalize("NFC", key): _plain(inner) for key, inner in value.items()}
        return dict(sorted(items.items()))
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    raise StoreError(f"a key cannot be made of {type(value).__name__} {value!r:.80}")


def key_of(record: Mapping[str, Any]) -> str:
    """A step's key: SHA-256 in hex over its canonical record, apart from every other kind of digest."""
    return hashlib.sha256(b"phipipe step\0" + canonical(record)).hexdigest()


def tree_digest(entries: Iterable[FileEntry]) -> str:
    """SHA-256 in hex over a tree's names and contents, whatever order they come in.

    Raises:
        StoreError: a name is absolute, leaves the tree, or clashes with another on some system.
    """
    listed = sorted(entries)
    seen: set[str] = set()
    for entry in listed:
        _check_name(entry.path, seen)
    rows = [[unicodedata.normalize("NFC", e.path), e.size, e.sha256] for e in listed]
    return hashlib.sha256(b"phipipe tree\0" + canonical(sorted(rows))).hexdigest()


def _check_name(path: str, seen: set[str]) -> None:
    parts = path.split("/")
    if "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise StoreError(f"`{path}` is no plain relative path")
    folded = unicodedata.normalize("NFC", path).casefold()
    if folded in seen:
        raise StoreError(f"`{path}` stands there twice on systems that ignore case")
    seen.add(folded)


def hash_file(path: Path) -> str:
    """SHA-256 in hex of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """POSIX paths of the files below ``folder``, sorted.

    Raises:
        StoreError: there is a link, a device or the like; a tree holds plain files only.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                path = f"{parent}/{entry.name}" if parent else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    waiting.append(path)
                elif stat.S_ISREG(mode):
                    found.append(path)
                else:
                    raise StoreError(f"`{path}` is neither a plain file nor a folder: a step may not leave that")
    return sorted(found)


def hash_tree(folder: Path) -> list[FileEntry]:
    """Entries of all files below ``folder``, sorted; several files are hashed at once.

    Raises:
        StoreError: see ``list_files``.
    """
    names = list_files(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: hash_file(folder / name), names)
        return [FileEntry(n, (folder / n).stat().st_size, s) for n, s in zip(names, sums, strict=True)]

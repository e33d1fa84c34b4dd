"""Digests of files outside the store, remembered by size and time so that a cached run reads none of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from phipipe import keys
from phipipe.backends.base import Outside
from phipipe.errors import SourceError

# A file written this shortly before it was hashed may change again within its timestamp's resolution:
# such an entry is not trusted the next time (git's "racy" rule).
RACY_NS = 2_000_000_000


def digest(source: Outside, cache: Path) -> str:
    """Tree digest over the names and contents of ``source``'s files.

    Raises:
        SourceError: a file is missing or cannot be read.
    """
    memory = _memory(source, cache)
    known, seen = _load(memory), {}
    for name in source.files:
        try:
            seen[name] = _entry(source.folder / name, known.get(name))
        except OSError as error:
            raise SourceError(f"cannot read `{source.folder / name}`: {error.strerror}") from None
    if seen != {name: known.get(name) for name in seen}:
        _save(memory, known | seen)
    return keys.tree_digest([keys.FileEntry(name, int(e["size"]), str(e["sha256"])) for name, e in seen.items()])


def forget(source: Outside, cache: Path) -> None:
    """Hash ``source`` anew the next time, whatever its sizes and times say."""
    _memory(source, cache).unlink(missing_ok=True)


def _memory(source: Outside, cache: Path) -> Path:
    name = hashlib.sha256(str(source.folder.resolve()).encode()).hexdigest()[:32]
    return cache / "outside" / f"{name}.json"


def _entry(path: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    status = path.stat()
    stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if known and all(known.get(k) == v for k, v in stamp.items()) and known["hashed_ns"] - stamp["mtime_ns"] > RACY_NS:
        return known
    return stamp | {"sha256": keys.hash_file(path), "hashed_ns": time.time_ns()}


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # absent or damaged: it is only a memory, hash again
        return {}
    return value if isinstance(value, dict) else {}


def _save(path: Path, value: dict[str, dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(value), "utf-8")
    aside.replace(path)

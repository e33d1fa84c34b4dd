"""Digests of files outside the store, remembered by size and time so that a cached run reads none
of them.

It is a memory and no more: what is not just as it was written is forgotten, and the files are
hashed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phipipe.errors import SourceError, StoreError
from phipipe.files import user_paths
from phipipe.steps import Json, Outside
from phipipe.store import files, keys

Entries = dict[str, dict[str, Json]]
FOLDER = "outside"

# A file written this shortly before it was hashed may change again within its timestamp's
# resolution: such an entry is not trusted the next time (git's "racy" rule).
RACY_NS = 2_000_000_000

# What this process hashed itself: path → what the system said of the file before, SHA-256. The time
# of the last change of the file's own entry cannot be set, so nothing written since passes.
_HASHED: dict[Path, tuple[tuple[int, ...], str]] = {}


def sure(path: Path) -> str:
    """SHA-256 in hex of a file's content as it is now: read, unless this process has read it and
    nothing has touched it since.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    stamp, now = _stamp(path), time.time_ns()
    known = _HASHED.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    digest = keys.hash_file(path)
    if now - path.stat().st_mtime_ns > RACY_NS and _stamp(path) == stamp:
        _HASHED[path] = (stamp, digest)
    return digest


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    change = 0 if os.name == "nt" else status.st_ctime_ns  # there it is the time of creation
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, change


def digest(source: Outside, cache: Path) -> str:
    """Tree digest over the names and contents of ``source``'s files.

    Raises:
        SourceError: a file is missing or cannot be read.
    """
    return keys.tree_digest(
        [
            keys.FileEntry(name, int(e["size"]), str(e["sha256"]))
            for name, e in entries(source, cache).items()
        ]
    )


def entries(source: Outside, cache: Path) -> Entries:
    """Size in bytes (``size``), time of the last change (``mtime_ns``) and ``sha256`` of each of
    ``source``'s files, by name.

    Raises:
        SourceError: a file is missing or cannot be read.
    """
    memory = _memory(source, cache)
    known = _load(memory) or {}

    def entry(name: str) -> dict[str, Json]:
        try:
            return _entry(source.folder / name, known.get(name))
        except OSError as error:
            raise SourceError(f"cannot read `{source.folder / name}`: {error.strerror}") from None

    with ThreadPoolExecutor(keys.THREADS) as pool:
        seen = dict(zip(source.files, pool.map(entry, source.files), strict=True))
    if seen != {name: known.get(name) for name in seen}:
        _save(memory, known | seen)
    return seen


def forget(source: Outside, cache: Path) -> None:
    """Hash ``source`` anew the next time, whatever its sizes and times say."""
    for name in source.files:
        _HASHED.pop(source.folder / name, None)
    _remove(_memory(source, cache))


def verify(cache: Path) -> list[str]:
    """Forget what is damaged of what is remembered; one line per finding."""
    findings, paths = [], list[Path]()
    with contextlib.suppress(OSError):
        paths = sorted((cache / FOLDER).glob("*.json"))
    damaged = [path for path in paths if _load(path) is None]
    for path in damaged:
        if not _is_earlier(path):
            words = "what is remembered of files outside the cache is damaged"
            findings.append(f"{words} ({path.name[:12]})")
        _remove(path)
    return findings


def _memory(source: Outside, cache: Path) -> Path:
    name = hashlib.sha256(os.fsencode(user_paths.resolved(source.folder))).hexdigest()[:32]
    return cache / FOLDER / f"{name}.json"


def _entry(path: Path, known: dict[str, Json] | None) -> dict[str, Json]:
    status = path.stat()
    stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if (
        known
        and all(known.get(k) == v for k, v in stamp.items())
        and known["hashed_ns"] - stamp["mtime_ns"] > RACY_NS
    ):
        return known
    return stamp | {"sha256": sure(path), "hashed_ns": time.time_ns()}


def _load(path: Path) -> Entries | None:
    """What ``path`` remembers; nothing if it is not there; None if it is not what was written."""
    try:
        known = keys.open_sealed(files.read_plain(path))["files"]
        if all(map(_is_entry, known.values())):
            return dict(known)
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, KeyError, AttributeError, StoreError):
        return None
    return None


def _is_earlier(path: Path) -> bool:
    """Whether an earlier phipipe wrote this, without a sum: forgotten too, yet no damage."""
    try:
        value = json.loads(files.read_plain(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value) and all(map(_is_entry, value.values()))


def _is_entry(entry: object) -> bool:
    """Whether ``entry`` has all that ``_entry`` makes. A sum can be right over something that is
    none."""
    numbers = ("size", "mtime_ns", "hashed_ns")
    return (
        isinstance(entry, dict)
        and all(type(entry.get(name)) is int for name in numbers)
        and isinstance(entry.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None
    )


def _save(path: Path, value: Entries) -> None:
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(keys.seal_record({"files": value}))
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        aside.replace(path)
    except (OSError, StoreError):
        # a full disk, or names that JSON has no letters for: hashed again the next time
        _remove(aside)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        files.remove(path)

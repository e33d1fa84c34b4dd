"""What decides a step's bytes, as one digest: canonical JSON, file digests, tree digests, step
keys.

Two records have the same key exactly when they mean the same to every step. The order of a
mapping's keys means nothing; the order of a list, and every code point of a text, means something.
1 and 1.0 are one number (YAML and JSON writers turn one into the other), as are 0.0 and -0.0; True
and 1 are not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phipipe.errors import StoreError
from phipipe.steps import Json

FORMAT = 2  # since 2, `runs` is a step's name, no module's address
"""Part of every key: raise it when the meaning of records changes, and old ones are ignored, never
misread."""

_CHUNK = 2 * 2**20
THREADS = min(8, os.cpu_count() or 1)
_SCALARS = frozenset((str, int, bool, type(None)))
_TEXT = frozenset((str,))


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file of a tree: POSIX path relative to it, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def canonical(value: object) -> bytes:
    """JSON bytes that are the same for the same meaning: sorted keys, no spaces, whole floats as
    integers.

    Raises:
        StoreError: the value is not JSON (NaN, a key that is no string, half a surrogate pair, some
            object).
    """
    # not ensure_ascii: two halves of a surrogate pair would be written just as the character they
    # resemble
    try:
        return json.dumps(
            _plain(value), separators=(",", ":"), sort_keys=True, ensure_ascii=False
        ).encode()
    except (ValueError, RecursionError) as error:
        raise StoreError(f"a key cannot be made of this value: {error}") from None


def _plain(value: Json) -> Json:
    kind = type(value)  # thousands of steps are described at once: what is usual comes first
    if kind in _SCALARS:
        return value
    if kind is dict and _TEXT.issuperset(map(type, value)):
        return {
            key: inner if type(inner) in _SCALARS else _plain(inner) for key, inner in value.items()
        }
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    raise StoreError(f"a key cannot be made of {type(value).__name__} {value!r:.80}")


def key_of(record: Mapping[str, object]) -> str:
    """A step's key: SHA-256 in hex over its canonical record, apart from every other kind of
    digest."""
    return hashlib.sha256(b"phipipe step\0" + canonical(record)).hexdigest()


def tree_digest(entries: Iterable[FileEntry]) -> str:
    """SHA-256 in hex over a tree's names (in Unicode's NFC) and contents, whatever order they come
    in.

    Raises:
        StoreError: a name is absolute, leaves the tree, or clashes with another on some system.
    """
    rows = sorted([unicodedata.normalize("NFC", e.path), e.size, e.sha256] for e in entries)
    _check_names([str(name) for name, _, _ in rows])
    return hashlib.sha256(b"phipipe tree\0" + canonical(rows)).hexdigest()


def _check_names(names: list[str]) -> None:
    """A tree must mean the same everywhere: also where case or Unicode form do not tell names
    apart."""
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        if (
            "\\" in name
            or "\0" in name
            or any(part in ("", ".", "..") for part in parts)
            or ":" in parts[0]
        ):
            raise StoreError(f"`{name}` is no plain relative path")
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in seen:
            raise StoreError(f"`{name}` is there twice on systems that ignore case")
        seen.add(folded)
        folders |= {str(parent) for parent in PurePosixPath(folded).parents}
    if clash := seen & folders:
        raise StoreError(f"`{min(clash)}` is a file and a folder on systems that ignore case")


def hash_file(path: Path) -> str:
    """SHA-256 in hex of a plain file's content, read in pieces.

    Raises:
        OSError: it cannot be read, or is something whose reading need not end, such as a pipe.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0, opener=_plain_file) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _plain_file(path: str, flags: int) -> int:
    """Open a plain file; what is none is refused, and waits for nobody."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "it is no plain file", path)
    return descriptor


def walk(folder: Path) -> dict[str, os.stat_result]:
    """POSIX path → status of every file below ``folder``, sorted by path.

    Raises:
        StoreError: there is a link, a device, an empty folder: something that a tree of files
            cannot hold.
    """
    files: dict[str, os.stat_result] = {}
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        names = os.listdir(folder / parent)  # noqa: PTH208 - names only, a Path per entry is slow
        if parent and not names:
            raise StoreError(f"`{parent}` is an empty folder: a step may leave files only")
        for name in names:
            path = f"{parent}/{name}" if parent else name
            status = (folder / path).lstat()
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            elif stat.S_ISREG(status.st_mode):
                files[path] = status
            else:
                raise StoreError(
                    f"`{path}` is neither a plain file nor a folder: a step may not leave that"
                )
    return dict(sorted(files.items()))


def hash_tree(folder: Path, threads: int | None = None) -> list[FileEntry]:
    """Entries of all files below ``folder``, sorted; several files are hashed at once.

    Raises:
        StoreError: see ``walk``.
    """
    files = walk(folder)
    with ThreadPoolExecutor(threads or THREADS) as pool:
        sums = pool.map(lambda path: hash_file(folder / path), files)
        return [
            FileEntry(path, files[path].st_size, digest)
            for path, digest in zip(files, sums, strict=True)
        ]


def seal_record(record: Mapping[str, object]) -> bytes:
    """The bytes to store ``record`` as: JSON with a digest of itself, so that no flipped bit goes
    unseen."""
    rest = {name: value for name, value in record.items() if name != "check"}
    check = hashlib.sha256(b"phipipe record\0" + canonical(rest)).hexdigest()
    return json.dumps({**rest, "check": check}, indent=1).encode()


def open_sealed(raw: bytes) -> dict[str, Json]:
    """What ``seal_record`` made ``raw`` of.

    Raises:
        StoreError: it was changed.
    """
    try:
        value = json.loads(raw)
        if isinstance(value, dict) and raw == seal_record(value):
            return value
    except (ValueError, RecursionError):
        pass
    raise StoreError("it is not what was written")


def open_record(raw: bytes, key: str) -> dict[str, Json]:
    """The record in ``raw``, which must be the very bytes that were sealed for ``key``.

    Raises:
        StoreError: it is damaged: changed, another key's, or its digest is not that of the files it
            lists.
    """
    try:
        record = json.loads(raw)
        entries = [FileEntry(o["path"], o["size"], o["sha256"]) for o in record["outputs"]]
        if (
            raw == seal_record(record)
            and record["key"] == key
            and record["digest"] == tree_digest(entries)
        ):
            return dict(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise StoreError(f"the record {key[:12]} is damaged")

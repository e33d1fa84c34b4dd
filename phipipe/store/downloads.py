"""Downloads of which no result came yet: what a killed run leaves for the next, until room is
needed.

They lie below ``<cache>/hub``, as ``hub.repository`` says, in ``parts/`` and ``whole/``. Whoever
works on one holds a lock beside it. What the hub was asked (``listing.json``, ``view/``) is small,
serves every later plan, and stays.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.store import files

FOLDERS = ("parts", "whole")
LOCKS = ("lock", "whole.lock")  # of who downloads, of who makes a result of it


@dataclass(frozen=True)
class Download:
    """What there is of a repository: where, which, bytes so far, since when, and when it last grew
    (ns)."""

    folder: Path
    repository: str  # owner/name@commit
    size_bytes: int
    since: datetime.datetime
    used_ns: int


def unfinished(root: Path) -> list[Download]:
    """All unfinished downloads in the cache ``root``."""
    folders = {
        path.parent for name in FOLDERS for path in (root / "hub").rglob(name) if path.is_dir()
    }
    described = (_describe(root, folder) for folder in sorted(folders))
    return [download for download in described if download is not None]


def size_bytes(folder: Path) -> int:
    """Bytes that the download in ``folder`` has so far."""
    return sum(files.size_of(path) for path in _files(folder))


def _describe(root: Path, folder: Path) -> Download | None:
    size, times = 0, list[int]()
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            size, times = size + path.stat().st_size, [*times, path.stat().st_mtime_ns]
    if not size:
        return None
    begun = min(times)
    with contextlib.suppress(FileNotFoundError):
        begun = min(begun, (folder / "listing.json").stat().st_mtime_ns)
    _, *names = folder.relative_to(root / "hub").parts
    at = next(
        (i for i, name in enumerate(names) if re.fullmatch("[0-9a-f]{40}", name)), len(names) - 1
    )
    return Download(
        folder=folder,
        repository=f"{'/'.join(names[:at])}@{names[at]}",
        size_bytes=size,
        since=datetime.datetime.fromtimestamp(begun / 1e9, datetime.UTC),
        used_ns=max(times),
    )


def _files(folder: Path) -> list[Path]:
    return [
        path for name in FOLDERS for path in sorted((folder / name).glob("*")) if path.is_file()
    ]


@contextlib.contextmanager
def in_use(folder: Path | None) -> Iterator[None]:
    """While this lasts, nobody collects what a step has put, or finds, in its own ``folder`` (None:
    it has none)."""
    if folder is None:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        yield


@contextlib.contextmanager
def idle(root: Path) -> Iterator[tuple[dict[str, Download], set[str]]]:
    """All downloads by their path in ``root``, and the paths of those at work; the others cannot
    start meanwhile."""
    everything = {d.folder.relative_to(root).as_posix(): d for d in unfinished(root)}
    with contextlib.ExitStack() as stack:
        busy = {name for name, download in everything.items() if not _hold(download, stack)}
        yield everything, busy


def _hold(download: Download, stack: contextlib.ExitStack) -> bool:
    """Whether nobody works on ``download``; then nobody can while ``stack`` is open."""
    try:
        for lock in (download.folder / name for name in LOCKS):
            # a full disk has no room for new ones, and whoever makes one waits at another
            if lock.exists():
                stack.enter_context(FileLock(lock, blocking=False))
    except Timeout:
        return False
    return True


def remove(download: Download) -> None:
    """Remove its files. The folders stay: whoever waits for the lock goes on in them."""
    for path in _files(download.folder):
        files.remove(path)

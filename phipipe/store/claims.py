"""Folders that somebody is working in, and the gate of a store.

A folder in use is claimed: its owner holds the lock file beside it. Locks end with their process,
however it ends, so a free lock means a dead owner; nothing here looks at process ids, which are
used again. Where locks do nothing (some network file systems), nobody can be known to be dead, and
nothing is swept.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.store import files, refusals

_CLAIM = re.compile(r"[0-9a-f]{32}")
_DAY_S = 86400


def gate(root: Path) -> FileLock:
    """The one lock of the store in ``root``: see ``store``."""
    return FileLock(root / "locks" / "collect.lock", timeout=refusals.GATE_S)


def locks_work(path: Path) -> bool:
    """Whether a lock that is held is refused to a second taker, tried on the lock file ``path``."""
    with FileLock(path):
        try:
            with FileLock(path, blocking=False):
                return False
        except Timeout:
            return True


@contextlib.contextmanager
def claim(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder in ``parent``, ours while this lasts and removed at the end, whatever happens.

    The lock is there before the folder and goes after it: who finds a folder can ask its lock.
    """
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    lock_file = _lock_of(folder)
    with FileLock(lock_file):
        try:
            folder.mkdir()
            yield folder
        finally:
            with contextlib.suppress(OSError):  # what cannot be removed now is swept later
                files.remove(folder)
            if not folder.exists():
                _unlink(lock_file)
    if not folder.exists():  # Windows removes no file that is open
        _unlink(lock_file)


def sweep(parent: Path, prefix: str = "") -> None:
    """Remove folders claimed by processes that are dead, and their lock files."""
    for path in sorted(parent.iterdir()):
        name = path.name.removeprefix(prefix)
        if path.name != prefix + name:
            continue
        if _CLAIM.fullmatch(name) and path.is_dir():
            with contextlib.suppress(Timeout, OSError), FileLock(_lock_of(path), blocking=False):
                files.remove(path)
                _unlink(_lock_of(path))
        elif path.suffix == ".lock" and _CLAIM.fullmatch(name[: -len(".lock")]) and _is_old(path):
            _unlink(path)  # its owner died, or has not made its folder yet: the latter takes no day


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _is_old(lock_file: Path) -> bool:
    with contextlib.suppress(OSError):
        return (
            not lock_file.with_suffix("").exists()
            and time.time() - lock_file.stat().st_mtime > _DAY_S
        )
    return False


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()

"""Files and folders handled with care: claimed, flushed, sealed, copied, swept; nothing here knows of records.

A folder in use is claimed: its owner holds the lock file beside it. Locks end with their process, however it
ends, so a free lock means a dead owner; nothing here looks at process ids, which are used again. Where locks
do nothing (some network file systems), nobody can be known to be dead, and nothing is swept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe import keys
from phipipe.errors import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GATE_S = 600  # nobody holds the gate for long, unless stopped by a debugger or a dead network disk
_MAKE_ROOM = "phipipe cache gc --budget GIB, or set PHIPIPE_CACHE to a larger disk"
_HINTS = {
    **dict.fromkeys(FULL, _MAKE_ROOM),
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine: close other programs",
    errno.EIO: "the disk fails: check it, or set PHIPIPE_CACHE to another one",
}
_CLAIM = re.compile(r"[0-9a-f]{32}")
_DAY_S = 86400


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or in a dry run would: digests; bytes of all files gone; bytes of objects left."""

    removed: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int


def choose(sizes: Mapping[str, int], used: Mapping[str, int], pinned: Collection[str], budget: int) -> tuple[str, ...]:
    """Objects to remove: all that no record names, then the longest unused until the rest fits ``budget``."""
    total, chosen = sum(sizes.values()), []
    for digest in sorted(sizes, key=lambda d: (used.get(d, 0), d)):
        if digest not in pinned and (digest not in used or total > budget):
            chosen.append(digest)
            total -= sizes[digest]
    return tuple(chosen)


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
                remove(folder)
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
                remove(path)
                _unlink(_lock_of(path))
        elif path.suffix == ".lock" and _CLAIM.fullmatch(name[: -len(".lock")]) and _is_old(path):
            _unlink(path)  # its owner died, or has not made its folder yet: the latter takes no day


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _is_old(lock_file: Path) -> bool:
    with contextlib.suppress(OSError):
        return not lock_file.with_suffix("").exists() and time.time() - lock_file.stat().st_mtime > _DAY_S
    return False


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def remove(path: Path) -> None:
    """Remove a file or a tree, read-only files included; what is gone already is fine."""
    for make_writable in (False, True):
        try:
            if make_writable:  # Windows removes no read-only file
                for inner in (path, *path.rglob("*")):
                    inner.chmod(stat.S_IRWXU)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except FileNotFoundError:  # somebody else removes it too
            continue
        except PermissionError:
            if make_writable:
                raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what is gone has none."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            return sum(inner.lstat().st_size for inner in path.rglob("*") if not inner.is_dir())
        return path.lstat().st_size
    return 0


def copy(source: Path, target: Path) -> None:
    """Copy content and times; by reflink where the file system shares blocks, never by link."""
    if not _reflink(source, target):
        shutil.copyfile(source, target)
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _reflink(source: Path, target: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    ficlone = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), ficlone, reader.fileno())
        except OSError:
            return False
    return True


@contextlib.contextmanager
def guard(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an operating system's refusal into a StoreError that says what to do."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter from locks on a file system without
        raise typed(error, folder, needed_bytes) from error


def typed(error: Exception, folder: Path, needed_bytes: int | None) -> StoreError:
    if isinstance(error, Timeout):
        return StoreError(f"another process has held `{error.lock_file}` for {GATE_S} s", hint="end that process")
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = _HINTS.get(number or 0, "set PHIPIPE_CACHE to a folder that you can write")
    if number not in FULL:
        return StoreError(f"cannot use `{folder}`: {reason}", hint=hint)
    parts = [] if needed_bytes is None else [f"{needed_bytes} bytes needed"]
    with contextlib.suppress(OSError):
        parts.append(f"{shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free} bytes free")
    return StoreError(f"no room left in `{folder}`: {', '.join([*parts, reason])}", hint=hint)


def is_damage(error: StoreError) -> bool:
    """Whether this says that a tree is not as it was stored, rather than that we failed to look."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return isinstance(cause, FileNotFoundError | NotADirectoryError) or cause.errno == errno.EIO
    return cause is None


def identity(path: Path) -> tuple[int, int] | None:
    """Which file or folder this is, however it is named; None if there is none."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        return status.st_dev, status.st_ino
    return None


def separate(folder: Path) -> None:
    """Give files with several hard links a life of their own: nobody may change a stored file by another name."""
    for path, status in keys.walk(folder).items():
        if status.st_nlink > 1:
            own = folder / f"{path}.{uuid.uuid4().hex[:8]}"
            copy(folder / path, own)
            own.replace(folder / path)


def seal(folder: Path, paths: list[str]) -> None:
    """Flush everything to the disk, then make the files read-only."""
    flush_tree(folder, paths)
    for path in paths:
        (folder / path).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)


def move_new(folder: Path, path: Path) -> bool:
    """Rename, unless something is there: said in whichever way the system says it."""
    if path.exists():
        return False
    try:
        folder.rename(path)
    except OSError:
        if folder.exists() and path.exists():  # another process was first
            return False
        raise
    return True


def flush_tree(folder: Path, paths: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:  # the disk merges what is asked at once
        list(pool.map(lambda path: _flush_file(folder / path), paths))
    for inner in sorted({folder / path for name in paths for path in Path(name).parents}, reverse=True):
        flush_folder(inner)


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, (os.O_RDWR | os.O_BINARY) if os.name == "nt" else os.O_RDONLY)  # type: ignore[attr-defined,unused-ignore]
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's own entries, where the system can (Windows cannot, and need not)."""
    if os.name != "nt":
        _flush_file(folder)


def flush(descriptor: int) -> None:
    """To the disk itself: on macOS, ``fsync`` ends in the drive's own memory."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, AttributeError, OSError):  # elsewhere, or a file system without
        os.fsync(descriptor)


def swap(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    flush_folder(target.parent)

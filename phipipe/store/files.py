"""Files and folders handled with care: claimed, flushed, sealed, copied, swept; nothing here knows
of records.

A folder in use is claimed: its owner holds the lock file beside it. Locks end with their process,
however it ends, so a free lock means a dead owner; nothing here looks at process ids, which are
used again. Where locks do nothing (some network file systems), nobody can be known to be dead, and
nothing is swept.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.errors import StoreError
from phipipe.store import free_space, keys

FULL = free_space.FULL
GATE_S = 600  # nobody holds the gate for long, unless stopped by a debugger or a dead network disk
_HINTS = {
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine: close other programs",
}
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# A phipipe cache: everything here can be "
    "made again.\n"
)
ABOUT = """This folder is phipipe's cache. Do not edit it; `phipipe cache ls|verify|gc` looks after it.
Deleting it is safe while no phipipe runs: everything in it is made again when it is needed.
"""
_CLAIM = re.compile(r"[0-9a-f]{32}")
_DAY_S = 86400


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or in a dry run would; bytes of all files gone, and of objects
    left.

    ``removed`` has digests of objects, and paths of unfinished downloads.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int


@dataclass(frozen=True)
class Usage:
    """One row of ``cache ls``."""

    key: str
    runs: str
    size_bytes: int
    created: datetime.datetime
    used: datetime.datetime


def label(root: Path) -> None:
    """Tell backup programs and people what this folder is."""
    for name, text in (("CACHEDIR.TAG", TAG), ("README.txt", ABOUT)):
        if not is_plain(root / name) or size_of(root / name) != len(
            text
        ):  # absent, or its writer was killed
            remove(root / name)
            (root / name).write_bytes(text.encode())


def is_plain(path: Path) -> bool:
    """Whether this is a file itself: no folder, no link, no device."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def choose(
    sizes: Mapping[str, int], uses: Iterable[tuple[str, int]], pinned: Collection[str], budget: int
) -> tuple[str, ...]:
    """Objects to remove: all that were never used, then the longest unused until the rest fits
    ``budget``.

    ``uses`` are digests and times, one for each record that names the object.
    """
    total, chosen = sum(sizes.values()), []
    used: dict[str, int] = {}
    for digest, moment in uses:
        used[digest] = max(moment, used.get(digest, 0))
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
        return (
            not lock_file.with_suffix("").exists()
            and time.time() - lock_file.stat().st_mtime > _DAY_S
        )
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


def read_plain(path: Path) -> bytes:
    """The content of a file itself. What took its place (a folder, a link, a device) is as good as
    a failing disk."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EIO, "it is no plain file", str(path))
    return path.read_bytes()


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
def guard(
    folder: Path,
    needed_bytes: int | None = None,
    only: Collection[int] | None = None,
    remedy: str = free_space.KEEP_CACHE,
) -> Iterator[None]:
    """Turn an operating system's refusal (``only`` these error numbers) into a StoreError that says
    what to do.

    ``remedy`` is what to do where ``folder``, which is not the cache, is full.
    """
    try:
        yield
    except (
        OSError,
        NotImplementedError,
    ) as error:  # the latter from locks on a file system without
        if only is not None and getattr(error, "errno", None) not in only:
            raise
        raise typed(error, folder, needed_bytes, remedy) from error


def typed(
    error: Exception,
    folder: Path,
    needed_bytes: int | None = None,
    remedy: str = free_space.KEEP_CACHE,
) -> StoreError:
    """``error`` in the user's terms: what was needed, what is free, what to do."""
    if isinstance(error, Timeout):
        return StoreError(
            f"another process has held `{error.lock_file}` for {GATE_S} s", hint="end that process"
        )
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if number in FULL:
        return free_space.error(
            [free_space.blamed(error, free_space.Folder(folder, remedy))],
            reason=reason,
            needed_bytes=needed_bytes,
        )
    other = "set PHIPIPE_CACHE to" if remedy == free_space.KEEP_CACHE else "choose another --out,"
    hint = (
        f"the disk fails: check it, or {other} another one"
        if number == errno.EIO
        else f"{other} a folder that you can write"
    )
    return StoreError(f"cannot use `{folder}`: {reason}", hint=_HINTS.get(number or 0, hint))


def probe(out: Path) -> None:
    """See that ``out``, a folder that need not be there yet, can be written: before hours of work.
    Leaves nothing.

    Raises:
        StoreError: it cannot.
    """
    try:
        nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise StoreError(
            f"cannot write to `{out}`: {error.strerror}", hint="choose another --out"
        ) from None


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


def modified_ns(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def times(folder: Path) -> dict[str, int]:
    """When each file of a tree was last written, in nanoseconds."""
    return {path: status.st_mtime_ns for path, status in keys.walk(folder).items()}


def write(path: Path, content: bytes) -> None:
    """Write a file, down to the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        _flush(stream.fileno())


def separate(folder: Path) -> None:
    """Give files with several hard links a life of their own: nobody may change a stored file by
    another name."""
    for path, status in keys.walk(folder).items():
        if status.st_nlink > 1:
            own = folder / f"{path}.{uuid.uuid4().hex[:8]}"
            copy(folder / path, own)
            own.replace(folder / path)


def seal(folder: Path, paths: Collection[str]) -> None:
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


def flush_tree(folder: Path, paths: Collection[str]) -> None:
    """Flush files and the folders they are in to the disk, so that a rename never shows what power
    loss takes."""
    with ThreadPoolExecutor(4) as pool:  # the disk merges what is asked at once
        list(pool.map(lambda path: _flush_file(folder / path), paths))
    for inner in sorted(
        {folder / path for name in paths for path in Path(name).parents}, reverse=True
    ):
        flush_folder(inner)


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, (os.O_RDWR | os.O_BINARY) if os.name == "nt" else os.O_RDONLY)  # type: ignore[attr-defined,unused-ignore]
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's own entries, where the system can (Windows cannot, and need not)."""
    if os.name != "nt":
        _flush_file(folder)


def _flush(descriptor: int) -> None:
    """To the disk itself: on macOS, ``fsync`` ends in the drive's own memory."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, AttributeError, OSError):  # elsewhere, or a file system without
        os.fsync(descriptor)


def swap(new: Path, target: Path, old: Path) -> None:
    """Put ``new`` where ``target`` is and ``target`` to ``old``; if that fails, all is as
    before."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    flush_folder(target.parent)


def is_copy(target: Path, expected: Mapping[str, tuple[int, int]]) -> bool:
    """Whether ``target`` holds just these files, by name, size and time."""
    try:
        found = {
            path: (status.st_size, status.st_mtime_ns) for path, status in keys.walk(target).items()
        }
    except (OSError, StoreError):
        return False
    return found == expected


def check_replaceable(target: Path) -> None:
    """Refuse to replace what phipipe did not write."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StoreError(
            f"`{target}` is in the way: it is no folder", hint="remove it, or choose another --out"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        raise StoreError(
            f"`{target}` holds files that phipipe did not write",
            hint="empty it, or choose another --out",
        )


def export(source: Path, times: Mapping[str, int], target: Path) -> None:
    """Replace ``target`` by a copy of ``source``: built beside it, flushed, renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with claim(target.parent, f".{target.name}.") as aside:
        for path, mtime_ns in times.items():
            copied = aside / "new" / path
            copied.parent.mkdir(parents=True, exist_ok=True)
            copy(source / path, copied)
            os.utime(copied, ns=(mtime_ns, mtime_ns))
        flush_tree(aside / "new", times)
        swap(aside / "new", target, aside / "old")

"""Files and trees handled with care: flushed, sealed, moved, copied, removed; nothing here knows of
records."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.store import keys


def is_plain(path: Path) -> bool:
    """Whether this is a file itself: no folder, no link, no device."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


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


def remove(path: Path) -> None:
    """Remove a file or a tree, read-only files included; what is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it too
        try:
            _remove(path)
        except (FileNotFoundError, PermissionError):
            for inner in (path, *path.rglob("*")):  # Windows removes no read-only file
                inner.chmod(stat.S_IRWXU)
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def write(path: Path, content: bytes) -> None:
    """Write a file, down to the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        _flush(stream.fileno())


_SHARING: ContextVar[bool] = ContextVar("_SHARING", default=False)


@contextlib.contextmanager
def sharing(allowed: bool) -> Iterator[None]:
    """Whether a light step that runs inside may ``share`` its inputs' files."""
    token = _SHARING.set(allowed)
    try:
        yield
    finally:
        _SHARING.reset(token)


def take_over(source: Path, target: Path) -> None:
    """Copy content and times; ``share`` the file where nobody else needs it."""
    (share if _SHARING.get() else copy)(source, target)


def share(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source``, for as long as it takes to take it over; a copy
    where the system has no such thing, and on Windows, which removes no name of a read-only
    file."""
    if os.name != "nt" and not _reflink(source, target):
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    copy(source, target)


def separate(folder: Path, other: Path | None = None) -> None:
    """Give files with several hard links a life of their own: nobody may change a stored file by
    another name. Those whose second name is in the tree ``other`` stay."""
    shared = set() if other is None else {identity(other / path) for path in keys.walk(other)}
    for path, status in keys.walk(folder).items():
        if status.st_nlink > 1 and identity(folder / path) not in shared:
            own = folder / f"{path}.{uuid.uuid4().hex[:8]}"
            copy(folder / path, own)
            own.chmod(stat.S_IMODE(status.st_mode))
            _flush_file(own)
            own.replace(folder / path)


def part(folder: Path) -> None:
    """``separate`` what a killed process left with two names when one tree took over another's
    files; what is no tree stays as it is."""
    with contextlib.suppress(OSError, StoreError):
        if any(status.st_nlink > 1 for status in keys.walk(folder).values()):
            separate(folder)


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
    flags = os.O_RDONLY
    if os.name == "nt":
        flags = os.O_RDWR | os.O_BINARY  # type: ignore[attr-defined,unused-ignore]
    descriptor = os.open(path, flags)
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

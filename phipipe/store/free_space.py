"""A full disk in words: which folder it is that has no room, and what to do about that one.

Who fails says only that there was no room somewhere. So the folders that something may have been
written to are asked how much is free, bytes and files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from phipipe.errors import StoreError
from phipipe.settings import Settings

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAID = re.compile(  # by programs and libraries that pass on the system's words only
    r"no space left|not enough space on the disk|disk quota exceeded|disk is full|file too large"
    r"|\(os error (28|122|27|112)\)|\[errno (28|122|27)\]|enospc|edquot",
    re.IGNORECASE,
)
SMALL_BYTES = 2**20  # less than this free is full
# a disk with so much room, and so few files, lacks files
PLENTY_BYTES, FEW_FILES = 64 * 2**20, 1000
KEEP_CACHE = "phipipe cache gc --budget GIB, or set PHIPIPE_CACHE to a larger disk"
KEEP_OUT = "make room there, or choose another --out"
KEEP_TEMPORARY = (
    f"make room there, or set {'TEMP' if os.name == 'nt' else 'TMPDIR'} to a "
    f"folder on a larger disk"
)
KEEP_UV = "uv cache clean, or set UV_CACHE_DIR to a folder on a larger disk"
KEEP_TOOLCHAINS = (
    "remove toolchains there that you do not need, or set PHIPIPE_TOOLCHAINS to a larger disk"
)


class Folder(NamedTuple):
    """A place that may be full, and what to do then."""

    path: Path
    remedy: str


class _Free(NamedTuple):
    size: int  # bytes
    # that may still be made; None where the file system has no such limit, or does not say
    files: int | None


def of_steps(settings: Settings) -> list[Folder]:
    """Folders that steps write to."""
    return [Folder(settings.cache, KEEP_CACHE), _temporary()]


def of_installation(settings: Settings) -> list[Folder]:
    """Folders that the installation of a toolchain writes to."""
    from platformdirs import user_cache_path

    own = os.environ.get("UV_CACHE_DIR") or user_cache_path("uv", appauthor=False)
    return [Folder(settings.toolchains, KEEP_TOOLCHAINS), Folder(Path(own), KEEP_UV), _temporary()]


def _temporary() -> Folder:
    try:
        return Folder(Path(tempfile.gettempdir()), KEEP_TEMPORARY)
    except OSError:  # none takes a file
        return Folder(
            Path(os.environ.get("TMPDIR") or os.environ.get("TEMP") or os.sep), KEEP_TEMPORARY
        )


def candidates(named: Path | None = None) -> list[Folder]:
    """Folders that phipipe writes to; or the one that an error ``named`` a file in."""
    settings = Settings.read()
    folders = [*of_steps(settings), Folder(settings.toolchains, KEEP_TOOLCHAINS)]
    if named is None:
        return folders
    ours = [folder for folder in folders if named.absolute().is_relative_to(folder.path)]
    return [
        max(ours, key=lambda folder: len(folder.path.parts), default=Folder(named.parent, KEEP_OUT))
    ]


def blamed(error: Exception, folder: Folder) -> Folder:
    """Which folder had no room, where ``folder`` was being written to: the one that ``error`` names
    a file of."""
    named = (getattr(error, "filename", None), getattr(error, "filename2", None))
    names = [Path(name).absolute() for name in named if isinstance(name, str)]
    if any(name.is_relative_to(folder.path.absolute()) for name in names):
        return folder
    if names:
        return candidates(names[-1])[0]  # of a copy, where it goes
    return _temporary() if not is_full([folder]) and is_full([_temporary()]) else folder


def error(
    folders: Sequence[Folder],
    *,
    reason: str,
    needed_bytes: int | None = None,
    doing: str | None = None,
) -> StoreError:
    """What to tell where one of ``folders`` took no more; ``doing`` begins the sentence."""
    folder = fullest(folders) or folders[0]
    free = _free(folder.path)
    before = f"{doing}: " if doing else ""
    if free and _lacks_files(free, needed_bytes):
        left = f"{free.files} more can be made there now"
        return StoreError(
            f"{before}no room for more files in `{folder.path}`: {left}, {reason}",
            hint=_remedy(folder, needed_bytes),
        )
    parts = [f"{needed_bytes} bytes needed"] if needed_bytes is not None else []
    parts += [f"{free.size} bytes free"] if free else []
    return StoreError(
        f"{before}no room left in `{folder.path}`: {', '.join([*parts, reason])}",
        hint=_remedy(folder, needed_bytes),
    )


def _remedy(folder: Folder, needed_bytes: int | None) -> str:
    """What to do about ``folder``; of the cache, what a collection would free."""
    if folder.remedy != KEEP_CACHE:
        return folder.remedy
    from phipipe.store import room  # which stands on this

    cache = folder.path if (folder.path / "objects").is_dir() else Settings.read().cache
    found = room.collection(cache, needed_bytes)
    return found.hint if found else folder.remedy


def _lacks_files(free: _Free, needed_bytes: int | None) -> bool:
    """Whether it was files that there was no room for. Some may have been removed again since."""
    if free.files is None:
        return False
    return free.files == 0 or (
        free.files < FEW_FILES and free.size > max(PLENTY_BYTES, needed_bytes or 0)
    )


def fullest(folders: Sequence[Folder]) -> Folder | None:
    """The folder with the least room: none for files at all, or the fewest bytes. None if none can
    be asked."""
    asked = [(free, folder) for folder in folders if (free := _free(folder.path))]
    return min(asked, key=lambda row: (row[0].files != 0, row[0].size), default=(None, None))[1]


def is_full(folders: Sequence[Folder]) -> bool:
    """Whether one of ``folders`` takes nothing any more, whatever an error says."""
    known = [free for folder in folders if (free := _free(folder.path))]
    return any(free.files == 0 or free.size < SMALL_BYTES for free in known)


def _free(path: Path) -> _Free | None:
    """What is free where ``path`` lies, or will lie."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        files = None
        if hasattr(os, "statvfs"):
            status = os.statvfs(there)
            files = status.f_favail if status.f_files else None
        return _Free(shutil.disk_usage(there).free, files)
    return None

"""A full disk in words: which folder it is that has no room, and what to do about that one.

Who fails says only that there was no room somewhere. So the folders that something may have been written to are asked
how much is free, bytes and files.
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

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAID = re.compile(  # by programs and libraries that pass on the system's words only
    r"no space left|not enough space on the disk|disk quota exceeded|disk is full|file too large"
    r"|\(os error (28|122|27|112)\)|\[errno (28|122|27)\]|enospc|edquot",
    re.IGNORECASE,
)
SMALL_BYTES = 2**20  # less than this free is full
KEEP_CACHE = "phipipe cache gc --budget GIB, or set PHIPIPE_CACHE to a larger disk"
KEEP_OUT = "make room there, or choose another --out"
KEEP_TEMPORARY = f"make room there, or set {'TEMP' if os.name == 'nt' else 'TMPDIR'} to a folder on a larger disk"
KEEP_TOOLCHAINS = "remove toolchains there that you do not need, or set PHIPIPE_TOOLCHAINS to a larger disk"


class Folder(NamedTuple):
    """A place that may be full, and what to do then."""

    path: Path
    remedy: str


class _Free(NamedTuple):
    size: int  # bytes
    files: int | None  # that may still be made; None where the file system has no such limit, or does not say


def candidates(named: Path | None = None, out: Path | None = None) -> list[Folder]:
    """Folders that phipipe writes to, ``named`` (what an error names) first."""
    from phipipe.settings import Settings

    settings = Settings.read()
    cache, toolchains = Folder(settings.cache, KEEP_CACHE), Folder(settings.toolchains, KEEP_TOOLCHAINS)
    temporary = Folder(Path(tempfile.gettempdir()), KEEP_TEMPORARY)
    found = [cache, *([Folder(out, KEEP_OUT)] if out else []), toolchains, temporary]
    if named is None:
        return found
    ours = [folder for folder in found if named.absolute().is_relative_to(folder.path)]
    inner = max(ours, key=lambda folder: len(folder.path.parts), default=Folder(named.parent, KEEP_OUT))
    return [inner]


def error(
    folders: Sequence[Folder], *, reason: str, needed_bytes: int | None = None, doing: str | None = None
) -> StoreError:
    """What to tell where one of ``folders`` took no more; ``doing`` begins the sentence."""
    folder = fullest(folders) or folders[0]
    free = _free(folder.path)
    before = f"{doing}: " if doing else ""
    if free and free.files == 0:
        return StoreError(f"{before}no room for more files in `{folder.path}`: {reason}", hint=folder.remedy)
    parts = [f"{needed_bytes} bytes needed"] if needed_bytes is not None else []
    parts += [f"{free.size} bytes free"] if free else []
    return StoreError(f"{before}no room left in `{folder.path}`: {', '.join([*parts, reason])}", hint=folder.remedy)


def fullest(folders: Sequence[Folder]) -> Folder | None:
    """The folder with the least room: none for files at all, or the fewest bytes. None if none can be asked."""
    asked = [(free, folder) for folder in folders if (free := _free(folder.path))]
    return min(asked, key=lambda row: (row[0].files != 0, row[0].size), default=(None, None))[1]


def is_full(folders: Sequence[Folder]) -> bool:
    """Whether one of ``folders`` takes nothing any more, whatever an error says."""
    found = [free for folder in folders if (free := _free(folder.path))]
    return any(free.files == 0 or free.size < SMALL_BYTES for free in found)


def _free(path: Path) -> _Free | None:
    """What is free where ``path`` lies, or will lie."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        files = None
        if hasattr(os, "statvfs"):
            told = os.statvfs(there)
            files = told.f_favail if told.f_files else None
        return _Free(shutil.disk_usage(there).free, files)
    return None

"""Paths that a user gives, looked at before anything is opened: one place for the whole command
line and for recipes.

What is no plain file or folder can hang whoever opens it (a pipe, a device, a file of /proc), and
what the system refuses to look at fails in as many ways as there are callers. Nothing here opens,
reads or changes anything.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import Enum
from pathlib import Path

MAX_NAME = 255  # bytes of one name: what every file system of the field takes
MAX_SHOWN = 200  # characters that a message repeats
ROOM_BELOW = 320  # characters that our own names take below a folder of the user's
_SYSTEM = ("/proc", "/sys", "/dev")
_NO_SYSTEM = ("/dev/shm",)  # a folder like any other


class Kind(Enum):
    """What a path is to be: to be read, or to be written and perhaps not there yet."""

    FILE = "file"
    FOLDER = "folder"
    EITHER = "file or folder"
    NEW_FILE = "file to be written"
    NEW_FOLDER = "folder to be written to"


_NEW = (Kind.NEW_FILE, Kind.NEW_FOLDER)
_FILES = (Kind.FILE, Kind.NEW_FILE)
_FOLDERS = (Kind.FOLDER, Kind.NEW_FOLDER)


def inside(base: Path, text: str) -> Path:
    """The path ``text``, as a recipe in the folder ``base`` names it, without links. Never
    fails."""
    return resolved(base / _at_home(text))


def _at_home(text: str) -> str:
    """``text`` with the home folder for ``~``; as it is where there is no such user."""
    return os.path.expanduser(text)  # noqa: PTH111 (Path's raises)


def resolved(path: Path) -> Path:
    """``path`` absolute and without links, as far as they lead anywhere. Never fails, unlike
    ``Path.resolve``."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return path


def shown(path: Path | str) -> str:
    """``path`` as a message repeats it: of a very long one its beginning and its end."""
    text = str(path)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}…{text[-MAX_SHOWN // 2 :]}"


def oddity(path: Path, given: str | None = None) -> str | None:
    """Why nothing can be at ``path`` that anybody could mean, in words that follow its name; else
    None.

    That it is missing is no oddity. ``given`` is the user's own text where ``~`` in it stands for a
    home folder.
    """
    text = str(path)
    if given is not None and given.startswith("~") and _at_home(given) == given:
        return f"begins with `{given.split('/')[0]}`, and there is no such home folder"
    if "\0" in text:
        return "holds a NUL character"
    try:
        parts = [part.encode() for part in path.parts]
    except UnicodeEncodeError:
        return "is not UTF-8"
    if max(map(len, parts), default=0) > MAX_NAME:
        return f"has a name of more than {MAX_NAME} bytes in it"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _refusal(error)
    except ValueError as error:
        return f"is no path: {error}"
    return _unusual(path, mode)


def problem(path: Path, kind: Kind, given: str | None = None) -> str | None:
    """Why ``path`` cannot be the ``kind`` that is meant, in words that follow its name; None where
    it can.

    A path that is to be read and is missing is left to who knows what to say of that.
    """
    if odd := oddity(path, given):
        return odd
    if kind is Kind.NEW_FOLDER and len(str(path.absolute())) + ROOM_BELOW > _longest():
        return "is too long: there is no room for names below it"
    try:
        mode = path.stat().st_mode
    except OSError:
        if path.is_symlink():
            return "is a link to nothing"
        above = next((folder for folder in path.absolute().parents if folder.exists()), None)
        return _unusual(above, above.stat().st_mode) if kind in _NEW and above else None
    if stat.S_ISDIR(mode) and kind in _FILES:
        return "is a folder, and a file is meant"
    if stat.S_ISREG(mode) and kind in _FOLDERS:
        return "is a file, and a folder is meant"
    if kind not in _NEW and not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        return "cannot be read: you have no permission"
    return None


def missing(path: Path) -> str:
    """Why ``path`` is no folder, as a sentence."""
    return "it is a file; name its folder" if path.is_file() else "there is no such folder"


def _longest() -> int:
    if os.name == "nt":
        return 32_000
    try:
        return os.pathconf("/", "PC_PATH_MAX")
    except (OSError, ValueError):
        return 1024


def _refusal(error: OSError) -> str | None:
    """What a failed look says; None for what is merely not there."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return None
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    if error.errno == errno.ENAMETOOLONG:
        return "is too long for this system"
    return f"cannot be looked at: {error.strerror}"


def _unusual(path: Path, mode: int) -> str | None:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if kind := kinds.get(stat.S_IFMT(mode)):
        return f"is {kind}, no file or folder"
    if os.name != "nt":
        place = str(resolved(path))
        if any(_below(place, root) for root in _SYSTEM) and not any(
            _below(place, root) for root in _NO_SYSTEM
        ):
            return "is a part of the running system, no file or folder of yours"
    return None


def _below(place: str, root: str) -> bool:
    return place == root or place.startswith(f"{root}/")

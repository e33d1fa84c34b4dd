"""What reached the top although no border foresaw it: a sentence where the world is at fault, a log
where we are.

Borders explain better, since they know what was being done; this is for what a disk, a network or a
stranger's file does where none is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path

from phipipe import __version__
from phipipe.errors import PhipipeError, SourceError, StepKilled, StoreError
from phipipe.store import free_space


def _numbers(names: str) -> frozenset[int]:
    """Numbers of errors by their names; no system has them all."""
    return frozenset(getattr(errno, name) for name in names.split() if hasattr(errno, name))


_PATHS = _numbers(
    "ENAMETOOLONG ELOOP EACCES EPERM EISDIR ENOTDIR ENOENT EEXIST ENOTEMPTY ENXIO ENODEV EINVAL "
    "EBUSY ETXTBSY ESPIPE "
    "EOPNOTSUPP E2BIG"
)
_DISKS = _numbers("EROFS EIO ESTALE EXDEV EMLINK")
_NETWORK = _numbers(
    "ECONNREFUSED ECONNRESET ECONNABORTED EPIPE ETIMEDOUT ENETUNREACH EHOSTUNREACH ENETDOWN "
    "EADDRINUSE EADDRNOTAVAIL"
)
_FILES = {errno.EMFILE: "ulimit -n 4096", errno.ENFILE: "close other programs"}


def explained(error: BaseException) -> PhipipeError | None:
    """``error`` in the user's terms; None for a bug."""
    if isinstance(error, MemoryError):
        return StepKilled(
            "phipipe itself ran out of memory",
            hint="close other programs, or take a larger machine",
        )
    if isinstance(error, RecursionError):
        return _with_log(error, SourceError("something that was read nests too deeply"))
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return _with_log(
            error, SourceError(f"something that was read, or its name, is no text: {error.reason}")
        )
    return _refused(error) if isinstance(error, OSError) else None


def _refused(error: OSError) -> PhipipeError | None:
    """The system's refusal, by what it is about."""
    named = [
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes)
    ]
    what, number = f"`{named[0]}`" if named else "a file", error.errno
    reason = error.strerror or str(error)
    if number == errno.ENOENT and "temporary directory" in reason:  # Python's own words
        return StoreError(
            "there is no folder for temporary files that takes one", hint=free_space.KEEP_TEMPORARY
        )
    if number == errno.ENOENT and not named and not _is_here():
        return SourceError("the current folder is gone", hint="change to another folder")
    if number in free_space.FULL:
        return free_space.error(
            free_space.candidates(Path(named[-1]) if named else None), reason=reason
        )
    if number in _FILES:
        return StoreError(f"too many files are open: {reason}", hint=_FILES[number])
    if number in (errno.ENOMEM, errno.EAGAIN):
        return StepKilled(
            f"the system has no memory or no processes left: {reason}", hint="close other programs"
        )
    if number in _DISKS:
        return StoreError(
            f"cannot use {what}: {reason}", hint="check the disk, or take another one"
        )
    if number in _NETWORK or isinstance(error, ConnectionError | TimeoutError):
        return SourceError(
            f"the network, or another process, does not answer: {reason}", hint="try again"
        )
    if number in _PATHS and named:
        return _with_log(error, SourceError(f"cannot use {what}: {reason}"))
    return None


def _is_here() -> bool:
    with contextlib.suppress(OSError):
        return bool(Path.cwd())
    return False


def _with_log(error: BaseException, words: PhipipeError) -> PhipipeError:
    """``words``, and where more is written."""
    return type(words)(
        words.message, hint=f"look at what you gave; details are in {log(error, 'error')}"
    )


def log(error: BaseException, kind: str = "bug") -> str:
    """Where the traceback was written; a traceback reaches the user only as the path of a file."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(
            "w",
            prefix=f"phipipe-{kind}-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(f"phipipe {__version__}, Python {sys.version}\n\n{text}")
        return file.name
    return f"no log, since the temporary folder takes none ({type(error).__name__})"

"""What the operating system refuses, in the user's terms: which folder, why, what to do."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import Timeout

from phipipe.errors import StoreError
from phipipe.store import free_space

GATE_S = 600  # nobody holds the gate for long, unless stopped by a debugger or a dead network disk
_HINTS = {
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine: close other programs",
}


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
    except (OSError, NotImplementedError) as error:
        # the latter from locks on a file system without
        if only is not None and getattr(error, "errno", None) not in only:
            raise
        raise describe(error, folder, needed_bytes, remedy) from error


def describe(
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
    if number in free_space.FULL:
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

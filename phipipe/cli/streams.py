"""Standard output and error as every command can rely on them: they take all text, and their
failing stops no work.

A stream that is closed, whose reader has gone (``| head``) or whose disk is full swallows the rest:
what was built stays built, and its exit code too. What went wrong is asked for at the end.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

from phipipe.visible import in_plain_signs

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HANDLER = "phipipe.plain"
codecs.register_error(HANDLER, in_plain_signs)
_replaced: list[TextIO] = []  # kept: going away, they would close what they stand for


class _Sturdy(io.RawIOBase):
    """A raw stream that remembers its first failure, and takes everything after it."""

    def __init__(self, inner: io.RawIOBase) -> None:
        self._inner = inner
        self.trouble: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        while self.trouble is None:
            try:
                written = self._inner.write(data)
                if written is not None:
                    return written
                # a pipe that never blocks is full: Node's, for one
                select.select([], [self._inner], [])
            except OSError as error:
                self.trouble = error
        return size


def prepare() -> None:
    """Mend both streams of this process; a caller's own (a test's) are left to it."""
    _open_what_is_closed()
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _mended(sys.stdout, sys.stdout.line_buffering or sys.stdout.write_through)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _mended(sys.stderr, True)


def trouble() -> OSError | None:
    """Why standard output has not taken everything; None where it has, or where its reader did not
    want more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    inner = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = inner.trouble if isinstance(inner, _Sturdy) else None
    # EINVAL: Windows' EPIPE
    return None if failure is None or failure.errno in (errno.EPIPE, errno.EINVAL) else failure


def _open_what_is_closed() -> None:
    """With ``>&-`` the next file that is opened would become the standard output, and get what is
    printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest number that is free: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for good)
            setattr(sys, name, nowhere)


def _mended(stream: TextIO, line_buffering: bool) -> TextIO:
    raw = _raw_of(stream)
    if raw is None or isinstance(raw, _Sturdy):
        return stream
    encoding, errors = stream.encoding or "utf-8", stream.errors or "strict"
    if os.name == "nt" and not stream.isatty() and not os.environ.get("PYTHONIOENCODING"):
        encoding = "utf-8"  # nobody chose the code page of a pipe
    if errors in ("strict", "surrogateescape", "backslashreplace"):
        errors = HANDLER
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    _replaced.append(stream)
    buffer = io.BufferedWriter(_Sturdy(raw))
    return io.TextIOWrapper(
        buffer, encoding, errors, line_buffering=line_buffering, write_through=line_buffering
    )


def _raw_of(stream: TextIO) -> io.RawIOBase | None:
    buffer: IO[bytes] | None = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer between
    return raw if isinstance(raw, io.RawIOBase) else None

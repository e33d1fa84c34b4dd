"""The terminal of a chat: only what we write ourselves reaches it, and that holds no control
characters."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from phipipe.errors import StoreError
from phipipe.visible import visible


@dataclass
class _Streams:
    """Where we write; the process's own stdout and stderr, until these were given to libraries'
    output."""

    out: TextIO | None = None
    err: TextIO | None = None


_STREAMS = _Streams()


def say(line: str) -> None:
    """A line of ours, on stderr."""
    with contextlib.suppress(OSError):  # nobody reads it
        print(visible(line), file=_STREAMS.err or sys.stderr, flush=True)


def show(text: str) -> None:
    """A piece of an answer, on stdout.

    Raises:
        BrokenPipeError: the reader went away.
        StoreError: it cannot be written.
    """
    try:
        print(text, end="", file=_STREAMS.out or sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"the answer cannot be written: {error.strerror}") from None


def enclose(log: Path) -> None:
    """Send all that libraries and native code print to ``log``; what we say and show goes on as
    before."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # a stream that we were started without
        pass
    os.close(spare)
    _STREAMS.out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    _STREAMS.err = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    kept = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(kept, 1)
    os.dup2(kept, 2)
    os.close(kept)


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """``input`` edits lines only on a process's own stdout: it is the terminal in this block."""
    if _STREAMS.out is None:
        yield
        return
    kept = os.dup(1)
    os.dup2(_STREAMS.out.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)

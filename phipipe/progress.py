"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[int, int, str], None]
"""Told how many of how many units are finished, and the units' name."""

_listener: OnProgress = lambda done, total, unit: None  # noqa: E731
_own = threading.local()  # what one thread alone listens to: several steps may run in one process


def listen(listener: OnProgress) -> None:
    """Hand every later report to ``listener`` alone (a step server does, for each request)."""
    global _listener
    _listener = listener


@contextmanager
def listening(listener: OnProgress) -> Iterator[None]:
    """Hand what this thread reports to ``listener`` for as long as the block lasts."""
    before = getattr(_own, "listener", _listener)
    _own.listener = listener
    try:
        yield
    finally:
        _own.listener = before


def report(done: int, total: int, unit: str) -> None:
    """``done`` of ``total`` ``unit`` (plural, such as "windows") are finished."""
    getattr(_own, "listener", _listener)(done, total, unit)


def each(items: Sequence[T], unit: str) -> Iterator[T]:
    """``items`` one after another; each that is asked for tells that those before are finished."""
    for done, item in enumerate(items):
        report(done, len(items), unit)
        yield item
    report(len(items), len(items), unit)

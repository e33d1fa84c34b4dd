"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
OnProgress = Callable[[int, int, str], None]
"""Told how many of how many units are finished, and the units' name."""

OnLine = Callable[[str, str], None]
"""Told a step's name, and a line that it wrote."""

_listener: OnProgress = lambda done, total, unit: None  # noqa: E731
_own = threading.local()  # what one thread alone listens to: several steps may run in one process
_follower: OnLine | None = None
_tokens: Counter[str] = Counter()  # of steps in toolchains, which run one at a time


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


def scored(tokens: int) -> None:
    """The step has had so many more ``tokens`` predicted that were there already."""
    _tokens["scored_tokens"] += tokens


def generated(tokens: int) -> None:
    """The step has had so many more ``tokens`` written by a model."""
    _tokens["generated_tokens"] += tokens


def take_tokens() -> dict[str, int]:
    """Tokens since this was called last, by the name in a step's usage, as far as there are any (a
    step server asks, for each request)."""
    taken = dict(_tokens)
    _tokens.clear()
    return taken


def follow(follower: OnLine | None) -> None:
    """Hand to ``follower`` what steps write from now on, line by line, from any thread."""
    global _follower
    _follower = follower


def is_followed() -> bool:
    """Whether anybody reads what steps write."""
    return _follower is not None


@contextmanager
def named(label: str) -> Iterator[None]:
    """What this thread's step is called, for as long as the block lasts."""
    _own.label = label
    try:
        yield
    finally:
        del _own.label


def wrote(line: str) -> None:
    """This thread's step wrote ``line``."""
    if _follower is not None:
        _follower(getattr(_own, "label", "step"), line)


def each(items: Sequence[T], unit: str) -> Iterator[T]:
    """``items`` one after another; each that is asked for tells that those before are finished."""
    for done, item in enumerate(items):
        report(done, len(items), unit)
        yield item
    report(len(items), len(items), unit)

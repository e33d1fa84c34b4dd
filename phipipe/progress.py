"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[int, int, str], None]

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Hand every later report to ``listener`` (the worker does this once)."""
    _listeners.append(listener)


def report(done: int, total: int, unit: str) -> None:
    """``done`` of ``total`` ``unit`` (plural, such as "windows") are finished."""
    for listener in _listeners:
        listener(done, total, unit)

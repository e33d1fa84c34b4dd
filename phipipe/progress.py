"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[int, int, str], None]

_listener: Listener = lambda done, total, unit: None  # noqa: E731


def listen(listener: Listener) -> None:
    """Hand every later report to ``listener`` alone (the worker does this for each request)."""
    global _listener
    _listener = listener


def report(done: int, total: int, unit: str) -> None:
    """``done`` of ``total`` ``unit`` (plural, such as "windows") are finished."""
    _listener(done, total, unit)

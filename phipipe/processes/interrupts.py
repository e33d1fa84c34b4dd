"""Ctrl-C held back, so that a process that has just been started gets it when it can do something
about it.

A process inherits this from the one that starts it. Windows has no such thing: there, Ctrl-C comes
at once.
"""

from __future__ import annotations

import signal
import sys


def hold_back() -> None:
    """Let Ctrl-C wait in this thread, and in what it starts, until ``take``."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def take() -> None:
    """Take Ctrl-C from now on, and the one that waits.

    Raises:
        KeyboardInterrupt: one was waiting.
    """
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

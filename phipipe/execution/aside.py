"""Threads beside a run's own, and what that one does when they are done."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from phipipe.errors import PhipipeError
from phipipe.progress import OnProgress

T = TypeVar("T")


class Aside:
    """Work that is done aside. All its ends are handled in the one thread that calls ``handle``."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], T], then: Callable[[T | PhipipeError], None]) -> None:
        """Do ``work`` in a thread of its own; ``then`` is handed what it returned, or how it
        failed."""

        def body() -> None:
            try:
                result: T | PhipipeError = work()
            except PhipipeError as failure:
                result = failure
            except BaseException as failure:  # noqa: BLE001 (a bug: raised where somebody sees it)
                self.call(partial(_raise, failure))
                return
            self.call(partial(then, result))

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=body, daemon=True))
        self._threads[-1].start()

    def call(self, event: Callable[[], None]) -> None:
        """From any thread: have ``event`` handled."""
        self._events.put(event)

    def relayed(self, tell: OnProgress) -> OnProgress:
        """``tell`` for any thread: it is called where events are handled."""
        return lambda *news: self.call(partial(tell, *news))

    def handle(self) -> None:
        """Wait for an event and handle it, and what else has come meanwhile."""
        self._events.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._events.get_nowait()()

    def join(self, end: float) -> None:
        """Wait for all threads, until ``end`` of the monotonic clock at the longest."""
        for thread in self._threads:
            # a signal may have come while one was being started; the bench refuses it
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))


def _raise(failure: BaseException) -> None:
    raise failure

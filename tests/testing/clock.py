"""Limits of time that also hold where tests share their machine.

Speed itself is measured in ``benchmarks/``. Here a limit tells what ends from what hangs, and a
cost that grows with the input from one that grows with its square.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARING = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # pytest's workers on this machine
LOAD = 3 if SHARING > 1 else 1  # beside other tests all takes longer
DEADLINE_MS = 2000 * LOAD  # for one example of hypothesis


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in this block takes less than ``seconds`` on an idle machine."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds * LOAD


@contextmanager
def computed_within(seconds: float) -> Iterator[None]:
    """What is done in this block takes less than ``seconds`` of this process's CPU."""
    start = time.process_time()
    try:
        yield
    finally:  # also of what is refused
        assert time.process_time() - start < seconds

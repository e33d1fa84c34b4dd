"""One machine at a time makes a result: ``claims/<key>`` in the shared store says which.

No machine's clock is compared with another's: a claim is taken over when it has not changed for
``STALE_S`` by the waiting machine's own clock.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.store.bucket import Bucket

HEARTBEAT_S, STALE_S, POLL_S = 5.0, 30.0, 1.0

# Who makes what is made in this thread, where somebody sees to it that one machine at a time does
# so in that name.
OWNER: ContextVar[str | None] = ContextVar("OWNER", default=None)


class Turns:
    """Claims in ``bucket``. ``note`` is told of waiting."""

    def __init__(self, bucket: Bucket, note: Callable[[str], None]) -> None:
        self._bucket, self._note = bucket, note

    def take(self, key: str) -> contextlib.AbstractContextManager[None] | None:
        """A claim on ``key``; None when another's has ended, or was given up, and one must look
        again."""
        name = f"claims/{key}"
        owner = OWNER.get() or uuid.uuid4().hex
        if self._bucket.put(name, _beat(owner)):
            return self._holding(name, owner)
        seen = self._bucket.get(name)
        if seen is not None and seen.startswith(f"{owner} ".encode()):
            return self._holding(name, owner)
        self._note(f"waiting for another machine, which builds {key[:12]}")
        if not self._ends(name, seen):
            self._note(f"the other machine has gone quiet, building {key[:12]} here")
            self._bucket.delete(name)
        return None

    def _ends(self, name: str, seen: bytes | None) -> bool:
        """Wait until the claim ``name`` ends; False when it has not changed for too long."""
        since = time.monotonic()
        while seen is not None:
            time.sleep(POLL_S)
            now = self._bucket.get(name)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > STALE_S:
                return False
        return True

    @contextlib.contextmanager
    def _holding(self, name: str, owner: str) -> Iterator[None]:
        """Say that we are alive, every few seconds, until the result is there."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                # others take over, and build it once more
                with contextlib.suppress(*self._bucket.FAILURES):
                    self._bucket.put(name, _beat(owner), replace=True)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(*self._bucket.FAILURES):
                self._bucket.delete(name)


def _beat(owner: str) -> bytes:
    return f"{owner} {uuid.uuid4().hex}".encode()

"""Asks the model's process, one request after another; others wait in a line that ends somewhere.

A thread of its own speaks with the process. A process that dies answers its request with an error,
and another is started. When that dies too before it has answered anything, the engine has failed,
and so has its server: whoever runs it decides what next.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phipipe.chat.peer import Peer
from phipipe.errors import PhipipeError, decoded
from phipipe.serving.bodies import Ask
from phipipe.serving.refusals import Refusal, busy
from phipipe.steps import Json

DEATHS = 2  # of processes, one after the other, that answered nothing
JOIN_S = 5.0
RETRY_S = 2  # when who was turned away may try again


@dataclass(frozen=True)
class Begun:
    """The prompt was read."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The answer is whole; ``reason``: "stop" or "length"."""

    reason: str
    tokens: int


Event = Begun | Piece | Ended | Refusal  # the last two come last
Hear = Callable[[Event], object]


class Job:
    """A request that waits, or is answered. ``hear`` is called by the engine's thread."""

    def __init__(self, number: int, ask: Ask, hear: Hear, engine: Engine) -> None:
        self.number, self.ask = number, ask
        self._hear, self._engine = hear, engine

    def tell(self, event: Event) -> None:
        """Tell who asked."""
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self._hear(event)

    def cancel(self) -> None:
        """Nobody wants the answer any more; of one that has ended nothing is left to do."""
        self._engine.cancel(self)


class Engine:
    """The model, and the line before it.

    Attributes:
        context: tokens of a prompt with its answer.
        failure: why it answers nothing any more.
    """

    def __init__(
        self, begin: Callable[[], Peer], waiting: int, on_failure: Callable[[], object]
    ) -> None:
        """Start a process by ``begin``; at most ``waiting`` requests wait.

        Raises:
            PhipipeError: it cannot be started.
        """
        self._begin, self._waiting, self._on_failure = begin, waiting, on_failure
        self._peer = begin()
        self.context = int(self._peer.ready["context"])
        self.failure: PhipipeError | None = None
        self._line: deque[Job] = deque()
        self._current: Job | None = None
        self._numbers, self._deaths = itertools.count(), 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="phipipe-serve", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, hear: Hear) -> Job:
        """Put ``ask`` into the line.

        Raises:
            Refusal: the line is full, or the engine has ended.
        """
        with self._changed:
            if self._closing or self.failure is not None:
                raise _over()
            if len(self._line) >= self._waiting:
                raise busy(self._waiting, RETRY_S)
            job = Job(next(self._numbers), ask, hear, self)
            self._line.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """As ``Job.cancel``."""
        with self._changed:
            if job in self._line:
                self._line.remove(job)
            elif job is self._current:
                with contextlib.suppress(PhipipeError):  # who hears it finds out why
                    self._peer.send({"cancel": job.number})

    def close(self) -> None:
        """End the process; whoever waits is told. Twice is fine."""
        with self._changed:
            self._closing = True
            waiting, self._line = [*self._line], deque()
            self._changed.notify()
        for job in waiting:
            job.tell(_over())
        self._peer.close()
        self._thread.join(JOIN_S)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                if not self._peer.is_alive():  # it was ended while nobody asked
                    self._again(PhipipeError("the model's process was ended"))
                self._do(job)
                self._deaths = 0
            except PhipipeError as error:
                self._recover(job, error)
            finally:
                with self._changed:
                    self._current = None

    def _next(self) -> Job | None:
        with self._changed:
            while not self._line and not self._closing and self.failure is None:
                self._changed.wait()
            if self._closing or self.failure is not None:
                return None
            self._current = self._line.popleft()
            return self._current

    def _do(self, job: Job) -> None:
        """Have ``job`` answered.

        Raises:
            PhipipeError: the process has died.
        """
        self._peer.send({"ask": {**job.ask.as_json(), "id": job.number}})
        while True:
            message = self._peer.next()
            if "error" in message:
                raise decoded(message["error"])
            event = _event(message)
            job.tell(event)
            if isinstance(event, Ended | Refusal):
                return

    def _recover(self, job: Job, error: PhipipeError) -> None:
        if self._closing:
            job.tell(_over())
            return
        job.tell(Refusal(500, f"the model's process has ended: {error.message}", code="crashed"))
        try:
            self._again(error)
        except PhipipeError as failure:
            self._fail(failure)

    def _again(self, error: PhipipeError) -> None:
        """Start another process.

        Raises:
            PhipipeError: ``error``, where too many have died; or it cannot be started.
        """
        self._peer.close()
        self._deaths += 1
        if self._deaths >= DEATHS:
            raise error
        peer = self._begin()
        with self._changed:
            self._peer = peer
        if self._closing:  # meanwhile
            peer.close()

    def _fail(self, failure: PhipipeError) -> None:
        with self._changed:
            self.failure = failure
            waiting, self._line = [*self._line], deque()
        for job in waiting:
            job.tell(_over())
        self._on_failure()


def _event(message: Mapping[str, Json]) -> Event:
    """A ``message`` of ``answering``'s."""
    if "text" in message:
        return Piece(message["text"])
    if "begun" in message:
        return Begun(message["begun"])
    if "end" in message:
        return Ended(message["end"]["reason"], message["end"]["tokens"])
    if "refused" in message:
        told = message["refused"]
        return Refusal(400, told["message"], code=told["code"], param=told["param"])
    return Refusal(500, decoded(message["failed"]).message)


def _over() -> Refusal:
    return Refusal(503, "the server is ending", code="ending")

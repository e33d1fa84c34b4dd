"""One request in the engine's line, heard on the event loop, and answered whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from phipipe.serving.bodies import Wanted, dumped
from phipipe.serving.engine import Begun, Ended, Engine, Event, Job, Piece
from phipipe.serving.refusals import Refusal
from phipipe.serving.replies import Reply, Sorted, Usage
from phipipe.steps import Json

DONE = b"data: [DONE]\n\n"


class Exchange:
    """A request that waits, or is answered; ``note`` hears of its end.

    Attributes:
        job: it in the line of ``engine``.
    """

    def __init__(
        self, engine: Engine, wanted: Wanted, reply: Reply, note: Callable[[str], object]
    ) -> None:
        """Put ``wanted`` into the line; ``reply`` says its answer.

        Raises:
            Refusal: the line is full.
        """
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._wanted, self._reply, self._note = wanted, reply, note
        self._text = Sorted(wanted.ask.tools, wanted.several)
        self._start, self._prompt = time.monotonic(), 0
        self.job: Job = engine.submit(
            wanted.ask, lambda event: loop.call_soon_threadsafe(self._events.put_nowait, event)
        )

    async def begun(self) -> None:
        """Until the answer begins: what is wrong before that can still be the response.

        Raises:
            Refusal: there will be none.
        """
        event = await self._next()
        if isinstance(event, Refusal):
            raise event

    async def whole(self) -> dict[str, Json]:
        """The whole answer as one document.

        Raises:
            Refusal: there is none.
        """
        parts = list[str]()
        while True:
            event = await self._next()
            if isinstance(event, Refusal):
                raise event
            if isinstance(event, Piece):
                parts.append(self._text.feed(event.text))
            elif isinstance(event, Ended):
                rest, found = self._text.end()
                said = "".join([*parts, rest])
                return self._reply.whole(said, found, event.reason, self._usage(event))

    async def events(self) -> AsyncIterator[bytes]:
        """The answer, which has begun, as events of a stream."""
        if self._reply.is_chat:
            yield _event(self._reply.opening())
        while True:
            event = await self._next()
            if isinstance(event, Refusal):
                yield _event(event.document())
                return
            if isinstance(event, Ended):
                break
            shown = self._text.feed(event.text) if isinstance(event, Piece) else ""
            if shown:
                yield _event(self._reply.piece(shown))
        rest, found = self._text.end()
        if rest:
            yield _event(self._reply.piece(rest))
        if found:
            yield _event(self._reply.called(found))
        yield _event(self._reply.closing("tool_calls" if found else event.reason))
        if self._wanted.usage:
            yield _event(self._reply.counted(self._usage(event)))
        yield DONE

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Begun):
            self._prompt = event.prompt_tokens
        if isinstance(event, Ended):
            self._told(f"{self._prompt} + {event.tokens} tokens ({event.reason})")
        if isinstance(event, Refusal):
            self._told(f"{event.status}: {event.message}")
        return event

    def _told(self, said: str) -> None:
        kind = "chat" if self._reply.is_chat else "text"
        self._note(f"{kind}  {said}, {time.monotonic() - self._start:.1f} s")

    def _usage(self, ended: Ended) -> Usage:
        return Usage(prompt=self._prompt, answer=ended.tokens)


def _event(document: Mapping[str, Json]) -> bytes:
    return b"data: " + dumped(document) + b"\n\n"

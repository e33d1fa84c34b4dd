"""The model's process of a server: runs inside the backend's toolchain, for ``engine``.

request  {"folder", "backend", "toolchain", "tokens", "context"}: ``context`` is the longest prompt
         with its answer, null for the package's own
stdin    {"ask": …} (``bodies.Ask.as_json`` and an "id"), one at a time, or {"cancel": id}
stdout   {"ready": {"context", "template"}}; for each ask {"begun": prompt tokens}, any number of
         {"text"}, {"end": {"reason", "tokens"}}; or {"refused": {"message", "code", "param"}}, what
         the asker did wrong; or {"failed"} (``errors.encoded``); or {"error"}, the last message
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from phipipe.chat import exchange
from phipipe.chat.exchange import tell
from phipipe.chat.pieces import ended, pieces
from phipipe.chat.serve import explained, open_talk
from phipipe.chat.talk import Talk, closing, encoded, generated, noted
from phipipe.errors import PhipipeError, SourceError, StepKilled
from phipipe.models import tool_prompts
from phipipe.sandbox.limited import Raised
from phipipe.serving import sampling
from phipipe.serving.held import Stops
from phipipe.steps import Json

TOO_LONG = "context_length_exceeded"
WARM = "a"  # a prompt that has the weights loaded before anybody asks


def serve() -> None:
    """In a process of its own: answer until stdin ends."""
    exchange.serve(hold)


def hold(request: Mapping[str, Json]) -> None:
    """Open the package of ``request``, and answer.

    Raises:
        PhipipeError: it cannot be opened, or ran out of memory.
    """
    talk = open_talk(Path(request["folder"]), request["backend"], request["tokens"], None)
    talk.context = min(talk.context, request["context"] or talk.context)
    for _ in generated(talk.runtime, encoded(talk.tokenizer, WARM), 1):
        pass
    desk = Desk(talk)
    tell(ready={"context": talk.context, "template": talk.template})
    threading.Thread(target=desk.listen, daemon=True).start()
    desk.work()


class Refused(Exception):
    """What the asker did wrong."""

    def __init__(self, message: str, code: str | None, param: str) -> None:
        super().__init__(message)
        self.told: dict[str, Json] = {"message": message, "code": code, "param": param}


class Desk:
    """Answers one ask after another; who asked may take it back at any time."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._asked: queue.SimpleQueue[dict[str, Json]] = queue.SimpleQueue()
        self._cancelled = -1  # the id of the last ask that was taken back

    def listen(self) -> None:
        """Hear what comes on stdin, a thread's work; with its end the process ends."""
        for line in sys.stdin:
            self.hear(json.loads(line))
        os._exit(0)

    def hear(self, message: Mapping[str, Json]) -> None:
        """Take one message of stdin's."""
        if "cancel" in message:
            self._cancelled = message["cancel"]
        else:
            self._asked.put(message["ask"])

    def work(self) -> None:
        """Answer for ever."""
        while True:
            self.answer(self._asked.get())

    def answer(self, ask: Mapping[str, Json]) -> None:
        """Answer ``ask`` on stdout.

        Raises:
            StepKilled: memory has run out.
        """
        try:
            ids = self._ids(ask)
            tell(begun=len(ids))
            self._generate(ask, ids)
        except Refused as refused:
            tell(refused=refused.told)
        except StepKilled:
            raise
        except PhipipeError as error:
            tell(failed=explained(error))

    def _ids(self, ask: Mapping[str, Json]) -> list[int]:
        param = "prompt" if ask["messages"] is None else "messages"
        text = ask["prompt"] if ask["messages"] is None else self._rendered(ask)
        try:
            ids = encoded(self._talk.tokenizer, text)
        except SourceError as error:  # of a text that takes more than it may
            raise Refused(error.message, None, param) from None
        if len(ids) >= self._talk.context:
            raise Refused(
                f"the prompt has {len(ids)} tokens, and this model's context ends at "
                f"{self._talk.context}, answer included",
                TOO_LONG,
                param,
            )
        return ids

    def _rendered(self, ask: Mapping[str, Json]) -> str:
        if not self._talk.template:
            raise Refused(
                "this package has no chat template: ask at /v1/completions", None, "messages"
            )
        try:
            text, shown = tool_prompts.rendered(self._talk.tokenizer, ask["messages"], ask["tools"])
        except (Raised, SourceError) as error:
            raise Refused(
                f"the package's chat template refuses this conversation: {error}", None, "messages"
            ) from None
        if ask["tools"] and not shown:
            raise Refused("the package's chat template shows no tools", None, "tools")
        return text

    def _generate(self, ask: Mapping[str, Json], ids: list[int]) -> None:
        talk, answered, stops = self._talk, list[int](), Stops(ask["stop"])
        room = min(ask["limit"] or talk.limit, talk.context - len(ids))
        choose = sampling.chooser(ask["temperature"], ask["top_p"], ask["seed"])
        with closing(generated(talk.runtime, ids, room, choose)) as tokens:
            wanted = self._wanted(noted(tokens, answered), ask["id"])
            for piece in pieces(talk.tokenizer.decode, wanted):
                _show(stops.feed(piece))
                if stops.found:
                    break
        _show(stops.rest())
        stopped = stops.found or ended(talk.tokenizer.decode, answered)
        tell(end={"reason": "stop" if stopped else "length", "tokens": len(answered)})

    def _wanted(self, tokens: Iterable[int], number: int) -> Iterator[int]:
        """The ``tokens`` as long as the ask ``number`` is not taken back."""
        for token in tokens:
            if self._cancelled == number:
                return
            yield token


def _show(text: str) -> None:
    if text:
        tell(text=text)

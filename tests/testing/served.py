"""A server over a made-up model, in this process: real HTTP, the real desk, no toolchain."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phipipe.backends.choosing import Choose, picked
from phipipe.chat.talk import Talk
from phipipe.errors import PhipipeError
from phipipe.sandbox.limited import Raised
from phipipe.serving import address, answering, app, front
from phipipe.serving.engine import Engine
from phipipe.serving.server import Server

END = 256
MODEL = "made-up"
TOKEN = "a-token-of-some-length"


class Bytes:
    """A tokenizer of one token per byte; 256 ends a text and shows nothing. Its template shows
    tools if ``shows``."""

    def __init__(self, shows: bool = True) -> None:
        self._shows = shows

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != END).decode("utf-8", "replace")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        if any(message["content"] == "refuse me" for message in messages):
            raise Raised("it must not be", kind="TemplateError")
        shown = json.dumps(tools) if tools and self._shows else ""
        return shown + "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


class Parrot:
    """A runtime that answers with the text after the last ``say:`` in its prompt, then ends.

    Attributes:
        made: tokens that it made in all.
        pause_s: before each.
    """

    def __init__(self, pause_s: float = 0.0) -> None:
        self.made, self.pause_s, self.prompts = 0, pause_s, list[bytes]()

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise AssertionError("a server needs no logits of every position")

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        text = bytes(prompt)
        self.prompts.append(text)
        said = text.rpartition(b"say:")[2].removesuffix(b"<assistant>") if b"say:" in text else b"?"
        for token in [*said, END][:limit]:
            if text.endswith(b"fail<assistant>"):
                raise RuntimeError("no such kernel")
            time.sleep(self.pause_s)
            logits = np.zeros(END + 1, np.float32)
            logits[token] = 50
            self.made += 1
            yield picked(logits, choose)

    def close(self) -> None: ...


class InProcess:
    """What ``chat.peer.Peer`` is, without a process."""

    def __init__(self, talk: Talk) -> None:
        self.ready = {"context": talk.context, "template": talk.template}
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._desk = answering.Desk(talk)
        self._alive, self._last = True, -1
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (ask := self._desk._asked.get()) and self._alive:
            self._desk.answer(ask)

    def hear(self, **message: Any) -> None:
        self._said.put(json.loads(json.dumps(message)))

    def is_alive(self) -> bool:
        return self._alive

    def send(self, message: Mapping[str, Any]) -> None:
        if "ask" in message:
            self._last = message["ask"]["id"]
        self._desk.hear(json.loads(json.dumps(message)))

    def next(self) -> dict[str, Any]:
        while self._alive:
            with contextlib.suppress(queue.Empty):
                message = self._said.get(timeout=0.05)
                if self._alive:
                    return message
        raise PhipipeError("the process has been ended")

    def close(self) -> None:
        self._alive = False
        self._desk.hear({"cancel": self._last})
        self._desk.hear({"ask": {}})
        self._thread.join(5)


class Running:
    """A server, and a client for it."""

    def __init__(self, server: Server, runtime: Parrot, notes: list[str]) -> None:
        self.server, self.runtime, self.notes = server, runtime, notes
        self.port = int(server.base_url.rpartition(":")[2].partition("/")[0])

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(client):
            client.request(
                method, path, body, {"Content-Type": "application/json", **(headers or {})}
            )
            response = client.getresponse()
            return response.status, response.read(), dict(response.getheaders())

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        given = {"model": MODEL, **body}
        status, raw, _ = self.send("POST", path, json.dumps(given).encode())
        return status, json.loads(raw)

    def chat(self, text: str, **more: Any) -> dict[str, Any]:
        """The whole answer to one message."""
        messages = [{"role": "user", "content": text}]
        status, document = self.post("/v1/chat/completions", messages=messages, **more)
        assert status == 200, document
        return document

    def stream(self, text: str, **more: Any) -> list[dict[str, Any]]:
        """The events of an answer, without the last."""
        messages = [{"role": "user", "content": text}]
        body = {"model": MODEL, "messages": messages, "stream": True, **more}
        status, raw, headers = self.send("POST", "/v1/chat/completions", json.dumps(body).encode())
        assert status == 200, raw
        assert headers["content-type"].startswith("text/event-stream")
        *events, done, nothing = raw.decode("ascii").split("\n\n")
        assert (done, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


Serve = Callable[..., Running]


def serving(monkeypatch: Any, ended: list[Callable[[], None]]) -> Serve:
    """Starts servers; each is in ``ended`` then."""

    def serve(
        *,
        tokenizer: Bytes | None = None,
        context: int = 1000,
        waiting: int = 32,
        token: str | None = None,
        origins: Sequence[str] = (),
        any_host: bool = False,
        pause_s: float = 0.0,
        template: bool = True,
    ) -> Running:
        runtime, notes = Parrot(pause_s), list[str]()
        talk = Talk(
            runtime=runtime,
            tokenizer=tokenizer or Bytes(),
            context=context,
            limit=200,
            template=template,
        )
        peer = InProcess(talk)
        monkeypatch.setattr(answering, "tell", peer.hear)
        listening = address.bound("127.0.0.1", 0)
        engine = Engine(lambda: peer, waiting, lambda: None)  # type: ignore[arg-type, return-value]
        service = app.Service(engine=engine, model=MODEL, fingerprint="x", note=notes.append)
        hosts = None if any_host else sorted(address.local_hosts(listening, "127.0.0.1"))
        made = app.application(service, hosts, token, origins)
        server = Server(listening, front.Front(made, engine), engine, MODEL)
        server.start()
        ended.append(server.close)
        return Running(server, runtime, notes)

    return serve

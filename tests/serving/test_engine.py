"""The line before a model, with real processes: deaths, restarts, ends."""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from phipipe.chat.peer import Peer
from phipipe.errors import PhipipeError, StepKilled
from phipipe.serving.bodies import Ask
from phipipe.serving.engine import Begun, Ended, Engine, Event, Job, Piece
from phipipe.serving.refusals import Refusal
from phipipe.settings import Settings

# A process that answers with the prompt, or does what a prompt that is a Python statement says.
ECHO = """
import json, os, signal, sys, threading, time
def say(**message): print(json.dumps(message), flush=True)
say(ready={"context": 10, "template": True})
for line in sys.stdin:
    message = json.loads(line)
    if "cancel" in message:
        continue
    ask = message["ask"]
    say(begun=len(ask["prompt"]))
    if ask["prompt"].startswith("!"):
        exec(ask["prompt"][1:])
    say(text=ask["prompt"])
    say(end={"reason": "stop", "tokens": 1})
"""
KILL = "!os.kill(os.getpid(), signal.SIGKILL)"


class Heard:
    """What was told of one request."""

    def __init__(self, engine: Engine, prompt: str) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.job: Job = engine.submit(Ask(prompt=prompt), self._events.put)

    def all(self) -> list[Event]:
        events: list[Event] = []
        while not events or not isinstance(events[-1], Ended | Refusal):
            events.append(self._events.get(timeout=30))
        return events

    def refused(self) -> Refusal:
        last = self.all()[-1]
        assert isinstance(last, Refusal)
        return last


Begin = Callable[..., Engine]


@pytest.fixture
def failed() -> threading.Event:
    return threading.Event()


@pytest.fixture
def begin(tmp_path: Path, failed: threading.Event) -> Iterator[Begin]:
    before, engines = children(), list[Engine]()

    def engine(waiting: int = 4, call: str = ECHO) -> Engine:
        request = {"toolchain": "x", "folder": str(tmp_path)}

        def peer() -> Peer:
            return Peer(Path(sys.executable), request, Settings.read(), call)

        engines.append(Engine(peer, waiting, failed.set))
        return engines[-1]

    yield engine
    for one in engines:
        one.close()
    assert children() <= before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_requests_are_answered_one_after_another(begin: Begin) -> None:
    engine = begin()
    heard = [Heard(engine, f"text {i}") for i in range(4)]
    for i, one in enumerate(heard):
        assert one.all() == [Begun(6), Piece(f"text {i}"), Ended("stop", 1)]
    assert engine.context == 10


def test_a_full_line_refuses_and_one_who_leaves_it_makes_room(begin: Begin) -> None:
    engine = begin(waiting=1)
    slow = Heard(engine, "!time.sleep(1)")
    while engine._line:  # until it is answered
        pass
    waits = Heard(engine, "waits")
    with pytest.raises(Refusal) as caught:
        Heard(engine, "too many")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "2"})
    waits.job.cancel()
    after = Heard(engine, "after")
    assert slow.all()[-1] == Ended("stop", 1)
    assert after.all()[-1] == Ended("stop", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_dies_fails_its_request_and_another_answers_the_next(
    begin: Begin, failed: threading.Event
) -> None:
    engine = begin()
    for _ in range(3):
        killed, waits = Heard(engine, KILL), Heard(engine, "next")
        assert (killed.refused().status, killed.job is waits.job) == (500, False)
        assert waits.all()[-1] == Ended("stop", 1)
    assert not failed.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_two_deaths_without_an_answer_are_the_servers_end(
    begin: Begin, failed: threading.Event
) -> None:
    engine = begin()
    heard = [Heard(engine, KILL), Heard(engine, KILL), Heard(engine, "never")]
    assert [one.refused().status for one in heard] == [500, 500, 503]
    assert failed.wait(10)
    assert isinstance(engine.failure, StepKilled)
    assert engine.failure.exit_code == 6
    with pytest.raises(Refusal, match="ending"):
        Heard(engine, "later")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_dies_while_nobody_asks_is_replaced_unseen(begin: Begin) -> None:
    engine = begin()
    assert Heard(engine, "first").all()[-1] == Ended("stop", 1)
    assert engine._peer.pid is not None
    psutil.Process(engine._peer.pid).kill()
    while engine._peer.is_alive():
        pass
    assert Heard(engine, "second").all()[-1] == Ended("stop", 1)


def test_what_the_process_refuses_and_fails_at_is_told(begin: Begin) -> None:
    engine = begin()
    told = Heard(engine, "!say(refused={'message': 'm', 'code': 'c', 'param': 'p'})").refused()
    assert (told.status, told.message, told.code, told.param) == (400, "m", "c", "p")


def test_the_end_tells_who_is_answered_and_who_waits(begin: Begin) -> None:
    engine = begin()
    heard = [Heard(engine, "!time.sleep(60)"), Heard(engine, "waits")]
    engine.close()
    assert [one.refused().status for one in heard] == [503, 503]
    engine.close()
    with pytest.raises(Refusal, match="ending"):
        Heard(engine, "later")


def test_a_process_that_cannot_begin_is_a_sentence(begin: Begin) -> None:
    error = {"kind": "StepFailed", "code": 5, "message": "no such model", "hint": None}
    with pytest.raises(PhipipeError, match=re.escape("no such model")):
        begin(call=f"import json; print(json.dumps({{'error': {error}}}), flush=True)")

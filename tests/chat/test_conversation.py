"""Talks from Python: prompts and answers as values, and every end of the process a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from phipipe.chat import exchange, screen
from phipipe.chat.conversation import Conversation
from phipipe.chat.talk import Talk
from phipipe.errors import PhipipeError, RecipeError, StepFailed, StepKilled, ToolchainError
from phipipe.settings import Settings

# What a process says that answers `echo: PROMPT`, remembers how many prompts there were, and does
# what a prompt that is a Python statement says.
ECHO = """
import json, os, sys, time, signal
def say(**message): print(json.dumps(message), flush=True)
say(ready=True)
asked = 0
for line in sys.stdin:
    message = json.loads(line)
    if "reset" in message:
        asked = 0
        continue
    asked += 1
    if message["prompt"] == "too long":
        say(note="that makes 2000 tokens")
        say(end=False)
        continue
    if message["prompt"].startswith("!"):
        exec(message["prompt"][1:])
    for piece in (f"{asked}. ", message["prompt"], "\\n"):
        say(text=piece)
    say(end=True)
"""
ERROR = {"kind": "StepFailed", "code": 5, "message": "no room", "hint": "less"}

Begin = Callable[..., Conversation]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    begun: list[Conversation] = []

    def conversation(call: str = ECHO, settings: Settings | None = None) -> Conversation:
        request = {"toolchain": "x", "folder": str(tmp_path)}
        talk = Conversation(Path(sys.executable), request, settings or Settings.read(), call)
        begun.append(talk)
        return talk

    yield conversation
    for talk in begun:
        talk.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_prompts_are_answered_in_one_process_that_remembers(begin: Begin) -> None:
    pieces: list[str] = []
    talk = begin()
    assert talk.ask("hello", pieces.append) == "1. hello"
    assert pieces == ["1. ", "hello", "\n"]
    assert talk.ask("again") == "2. again"
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[-1]["content"] == "2. again"
    talk.reset()
    assert talk.messages == []
    assert talk.ask("new") == "1. new"


def test_prompts_of_all_kinds_arrive(begin: Begin) -> None:
    talk = begin()
    for prompt in ("line\nline", "🙂 é", '"quoted" \\', "a\u2028b", "{}"):
        assert talk.ask(prompt).partition(". ")[2] == prompt
    for half in ("\udcff", "\ud800", "\udfff"):
        assert talk.ask(f"half {half}").endswith("half \ufffd")
    assert talk.ask("\udcc3\udca4").endswith("ä")  # bytes that no locale has read


def test_an_empty_prompt_is_refused_and_the_talk_goes_on(begin: Begin) -> None:
    talk = begin()
    for prompt in ("", " \n\t"):
        with pytest.raises(TypeError, match="the prompt is bytes: give a text"):
            talk.ask(b"hello")  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="the prompt is empty"):
            talk.ask(prompt)
    assert talk.ask("hello") == "1. hello"


def test_a_prompt_that_is_too_long_is_refused_and_the_talk_goes_on(begin: Begin) -> None:
    talk = begin()
    with pytest.raises(RecipeError, match="2000 tokens") as caught:
        talk.ask("too long")
    assert caught.value.hint == "a shorter prompt, or reset() to forget what was said"
    assert talk.messages == []
    assert talk.ask("hello") == "2. hello"
    assert talk.notes == []


def test_notes_are_those_of_the_last_answer(begin: Begin) -> None:
    talk = begin()
    talk.ask("!say(note='cut after 3 tokens')")
    assert talk.notes == ["cut after 3 tokens"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        (f"say(error={ERROR}); os._exit(0)", StepFailed, "no room"),
        ("os.kill(os.getpid(), signal.SIGKILL)", StepKilled, "SIGKILL"),
        ("os._exit(3)", ToolchainError, "cannot be started"),
        ("held = b'x' * (400 << 20); time.sleep(60)", StepKilled, "more memory than PHIPIPE_MEM"),
    ],
    ids=["error", "killed", "exit", "memory"],
)
def test_every_end_of_the_process_is_a_sentence_and_ends_the_talk(
    begin: Begin, does: str, kind: type[PhipipeError], words: str
) -> None:
    before = children()
    talk = begin(settings=replace(Settings.read(), memory_limit_gib=0.25))
    with pytest.raises(kind, match=re.escape(words)):
        talk.ask(f"!{does}")
    assert children() <= before
    with pytest.raises(RecipeError, match="the conversation has ended"):
        talk.ask("still there?")


def test_a_process_that_never_gets_ready_leaves_nothing_behind(begin: Begin) -> None:
    before = children()
    with pytest.raises(ToolchainError, match="cannot be started"):
        begin("raise ImportError('no such thing')")
    assert children() <= before


def test_a_python_that_is_not_there_is_a_damaged_toolchain(tmp_path: Path) -> None:
    request = {"toolchain": "x", "folder": str(tmp_path)}
    with pytest.raises(ToolchainError, match="cannot be started") as caught:
        Conversation(tmp_path / "nothing", request, Settings.read())
    assert caught.value.hint == "phipipe toolchain install x --force"


def test_the_end_of_the_block_ends_the_process(begin: Begin) -> None:
    before = children()
    with begin() as talk:
        talk.ask("hello")
        assert len(children() - before) == 1
    assert children() <= before
    talk.close()


def test_a_callback_that_raises_ends_the_talk(begin: Begin) -> None:
    before = children()

    def fail(piece: str) -> None:
        raise ValueError(piece)

    with pytest.raises(ValueError, match=r"1\. "):
        begin().ask("hello", fail)
    assert children() <= before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_process_and_is_raised(begin: Begin) -> None:
    before, talk = children(), begin()

    def press() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        talk.ask("!time.sleep(60)")
    assert children() <= before


# --- the process's side


class Bytes:
    """A tokenizer of one token per byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(message["content"] for message in messages)


class Parrot:
    """Answers with the prompt and a bell."""

    def logits(self, tokens: Sequence[int]) -> object:
        raise AssertionError("a chat needs no logits")

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        yield from [*prompt, 7][:limit]

    def close(self) -> None: ...


def test_an_answer_is_lines_of_json_and_its_control_characters_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen._STREAMS, "out", None)
    talk = Talk(runtime=Parrot(), tokenizer=Bytes(), context=20, limit=10)  # type: ignore[arg-type]
    talk.show, talk.say = exchange._piece, exchange._note
    exchange._obey(talk, {"prompt": "ab"})
    exchange._obey(talk, {"prompt": "x" * 30})
    exchange._obey(talk, {"reset": True})
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(m.get("text", "") for m in told) == "ab\\x07\n"
    assert told[-2:] == [
        {"note": "that makes 35 tokens, and the model's context ends at 20"},
        {"end": False},
    ]
    assert {"end": True} in told
    assert talk.messages == []

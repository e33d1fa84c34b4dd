"""Chatting: whole characters as they come, a conversation that is remembered, endings that are
said."""

from __future__ import annotations

import io
import itertools
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import small_package

from phipipe import backends
from phipipe.chat import lines as chat_lines
from phipipe.chat import pieces as chat_pieces
from phipipe.chat import process, serve
from phipipe.chat.lines import converse
from phipipe.chat.pieces import pieces
from phipipe.chat.serve import main
from phipipe.chat.talk import Talk
from phipipe.errors import (
    PhipipeError,
    RecipeError,
    SourceError,
    StepFailed,
    StepKilled,
    ToolchainError,
)
from phipipe.package import manifest
from phipipe.sandbox.limited import Raised
from phipipe.settings import Settings
from phipipe.visible import visible

END = 256


class Bytes:
    """A tokenizer of one token per byte, as cruel as byte-level ones get; 256 ends a text and shows
    nothing."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != END).decode("utf-8", "replace")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


class Strict(Bytes):
    """Cannot show half a character at all."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != END).decode("utf-8")


class Words:
    """SentencePiece's way: a space before every word but the first of what is decoded."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


class Parrot:
    """Answers with what it was made with, one answer after the other, then an end token."""

    def __init__(self, *answers: str, stop_at: int | None = None) -> None:
        self.answers, self.stop_at = itertools.cycle(answers), stop_at
        self.prompts: list[bytes] = []
        self.left = 0
        self.closed = False

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise AssertionError("a chat needs no logits")

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        self.prompts.append(bytes(prompt))
        ids = [*next(self.answers).encode(), END][:limit]
        try:
            for i, token in enumerate(ids):
                if i == self.stop_at:
                    raise KeyboardInterrupt
                yield token
        finally:
            self.left += 1

    def close(self) -> None:
        self.closed = True


def talk(runtime: Parrot, **changes: Any) -> Talk:
    settings: dict[str, Any] = {
        "runtime": runtime,
        "tokenizer": Bytes(),
        "context": 1000,
        "limit": 100,
    } | changes
    return Talk(**settings)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- pieces


@given(st.text(max_size=80))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    for tokenizer in (Bytes(), Strict()):
        found = list(pieces(tokenizer.decode, text.encode()))
        assert "".join(found) == text
        assert all("\ufffd" not in piece for piece in found) or "\ufffd" in text
        assert all(found)


def test_a_character_appears_with_its_last_byte_not_at_the_end() -> None:
    shown: list[str] = []
    at: list[int] = []

    def fed() -> Iterator[int]:
        for i, byte in enumerate("é🙂!".encode()):
            at.append(i)
            yield byte

    for piece in pieces(Bytes().decode, fed()):
        shown.append(f"{piece}@{at[-1]}")
    assert shown == ["é@1", "🙂@5", "!@6"]


@given(st.lists(st.integers(0, 99), max_size=60))
def test_spaces_that_depend_on_neighbours_are_kept(ids: list[int]) -> None:
    assert "".join(pieces(Words().decode, ids)) == Words().decode(ids)


def test_an_answer_that_ends_within_a_character_shows_that() -> None:
    assert "".join(pieces(Bytes().decode, "ab🙂".encode()[:-1])) == "ab\ufffd"


def test_long_answers_are_not_decoded_again_from_the_start() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return Bytes().decode(ids)

    assert "".join(pieces(decode, b"x" * 5000)) == "x" * 5000
    assert longest <= 4 * chat_pieces.KEEP_TOKENS


def test_a_model_cannot_command_the_terminal() -> None:
    assert visible("a\x1b]0;evil\x07b\r\x9b31m\tc\n🙂") == "a\\x1b]0;evil\\x07b\\x0d\\x9b31m\tc\n🙂"


# -- one prompt
# -----------------------------------------------------------------------------------------------


def test_one_prompt_gives_one_answer_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(Parrot("Grüße 🙂")).once("hi") == 0
    assert capsys.readouterr() == ("Grüße 🙂\n", "")


def test_the_answer_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "builtins.print", lambda *a, end="\n", flush=False, file=None: printed.append((*a, flush))
    )
    talk(Parrot("abc")).once("hi")
    assert printed[:3] == [("a", True), ("b", True), ("c", True)]


def test_an_answer_cut_by_the_limit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    talk(Parrot("abcdef"), limit=4).once("hi")
    assert capsys.readouterr() == ("abcd\n", "[cut after 4 tokens; --tokens allows more]\n")


def test_an_answer_that_ends_just_at_the_limit_was_not_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk(Parrot("abc"), limit=4).once("hi")
    assert capsys.readouterr().err == ""


def test_an_answer_cut_within_a_character_was_cut(capsys: pytest.CaptureFixture[str]) -> None:
    talk(Parrot("ab🙂"), limit=4).once("hi")
    assert capsys.readouterr() == ("ab\ufffd\n", "[cut after 4 tokens; --tokens allows more]\n")


def test_a_full_context_ends_the_answer_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = len(Bytes().render([{"role": "user", "content": "hi"}]))
    talk(Parrot("abcdef"), context=prompt + 3).once("hi")
    assert capsys.readouterr() == (
        "abc\n",
        f"[the model's context of {prompt + 3} tokens is full]\n",
    )


def test_a_prompt_without_room_is_refused_with_its_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = Parrot("abc")
    assert talk(runtime, context=20).once("a long, long prompt") == 2
    assert "36 tokens" in capsys.readouterr().err
    assert runtime.prompts == []


def test_a_base_model_continues_the_text_as_it_is() -> None:
    runtime = Parrot("abc")
    asked = talk(runtime, template=False)
    asked.answer("Once")
    asked.answer("Twice")
    assert runtime.prompts == [b"Once", b"Twice"]


def test_a_template_that_refuses_is_a_typed_failure() -> None:
    class Refusing(Bytes):
        def render(self, messages: Sequence[Mapping[str, str]]) -> str:
            raise Raised("no system messages", kind="TemplateError")

    with pytest.raises(StepFailed, match="no system messages"):
        talk(Parrot("x"), tokenizer=Refusing()).answer("hi")


# -- conversations
# --------------------------------------------------------------------------------------------


def test_lines_are_prompts_of_one_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = Parrot("one", "two")
    assert converse(talk(runtime, system="Be brief."), io.StringIO("first\n\n  \nsecond")) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert runtime.prompts == [
        b"<system>Be brief.<user>first<assistant>",
        b"<system>Be brief.<user>first<assistant>one<user>second<assistant>",
    ]


def test_reset_forgets_and_quit_ends() -> None:
    runtime = Parrot("one")
    assert converse(talk(runtime), io.StringIO("first\n/reset\nsecond\n/quit\nthird\n")) == 0
    assert runtime.prompts == [b"<user>first<assistant>", b"<user>second<assistant>"]


def test_piped_prompts_stop_where_the_context_ends(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = Parrot("one")
    assert converse(talk(runtime, context=40), io.StringIO("first\nsecond\nthird\n")) == 2
    assert len(runtime.prompts) == 1
    assert "/reset" in capsys.readouterr().err


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Let ``input`` give these lines, or raise these, then Ctrl-D."""
    script = iter([*lines, EOFError])

    def typed(prompt: str) -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)


def test_ctrl_d_ends_the_chat_well(monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "hello")
    runtime = Parrot("hi")
    assert converse(talk(runtime), Terminal()) == 0
    assert len(runtime.prompts) == 1


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typing(monkeypatch, "hello", "again")
    runtime = Parrot("abcdef", stop_at=3)
    asked = talk(runtime)
    assert converse(asked, Terminal()) == 130  # the second answer is stopped too
    assert runtime.prompts[1] == b"<user>hello<assistant>abc<user>again<assistant>"
    assert runtime.left == 2
    assert "Ctrl-C again ends the chat" in capsys.readouterr().err


def test_a_second_ctrl_c_ends_the_chat_but_not_one_after_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typing(monkeypatch, KeyboardInterrupt, KeyboardInterrupt, "never asked")
    runtime = Parrot("hi")
    assert converse(talk(runtime), Terminal()) == 130
    typing(monkeypatch, KeyboardInterrupt, "asked", KeyboardInterrupt)
    assert converse(talk(runtime), Terminal()) == 0
    assert len(runtime.prompts) == 1


def test_an_interactive_chat_goes_on_when_the_context_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typing(monkeypatch, "first", "second", "/reset", "third")
    runtime = Parrot("one")
    assert converse(talk(runtime, context=40), Terminal()) == 0
    assert runtime.prompts == [b"<user>first<assistant>", b"<user>third<assistant>"]


# -- the whole
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in little, and a backend that opens it as a parrot."""
    runtime = Parrot("hello")

    class Backend:
        toolchain = "parrot"

        @staticmethod
        def open(folder: Path) -> Parrot:
            return runtime

        @staticmethod
        def tokenizer(folder: Path) -> Bytes:
            return Bytes()

    described = small_package.described(context_length=100)
    manifest.seal(tmp_path, described)
    monkeypatch.setattr(backends, "load", lambda name: {"parrot": Backend}[name])
    return tmp_path


def test_main_answers_a_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(folder, "parrot", "hi", 50, None) == 0
    assert capsys.readouterr().out == "hello\n"


def test_main_reads_prompts_line_by_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert main(folder, "parrot", None, 50, None) == 0
    assert capsys.readouterr().out == "hello\nhello\n"


def test_a_cache_that_was_built_shorter_is_the_context(tmp_path: Path) -> None:
    described = small_package.described(context_length=100)
    step = described["steps"]["source"]
    for length, context in ((60, 60), (200, 100), ("60", 100)):
        described["steps"]["convert"] = {**step, "params": {"context_length": length}}
        folder = tmp_path / f"{length}-{context}"
        folder.mkdir()
        manifest.seal(folder, described)
        assert serve.context_of(manifest.read_manifest(folder)) == context


def test_main_closes_the_model_whatever_happens(folder: Path) -> None:
    assert main(folder, "parrot", "x" * 200, 50, None) == 2
    assert backends.load("parrot").open(folder).closed  # type: ignore[attr-defined]


def test_main_says_what_is_wrong_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no package at"):
        main(tmp_path / "nothing", "onnxruntime", "hi", 5, None)


# -- endings
# --------------------------------------------------------------------------------------------------


def test_help_and_unknown_commands_are_answered_and_not_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = Parrot("one")
    assert converse(talk(runtime), io.StringIO("/help\n/hlep\n/usr/bin is what?\n/quit\n")) == 0
    said = capsys.readouterr().err
    assert all(command in said for command in ("/reset", "/quit", "/help", "there is no `/hlep`"))
    assert runtime.prompts == [b"<user>/usr/bin is what?<assistant>"]


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_refused(folder: Path, prompt: str) -> None:
    with pytest.raises(RecipeError, match="the prompt is empty"):
        main(folder, "parrot", prompt, 50, None)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL\x1b[2J"), StepFailed),
        (ValueError("no"), StepFailed),
        (KeyError("decoder"), StepFailed),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), StepFailed),
        (MemoryError(), StepKilled),
        (RuntimeError("std::bad_alloc"), StepKilled),
        (ModuleNotFoundError("No module named 'x'", name="x"), ToolchainError),
        (SourceError("refused"), SourceError),
    ],
    ids=repr,
)
def test_whatever_a_runtime_raises_is_one_of_our_failures(
    raised: Exception, kind: type[PhipipeError]
) -> None:
    class Broken(Parrot):
        def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            raise raised

    with pytest.raises(kind):
        talk(Broken()).answer("hi")


def test_a_text_without_tokens_is_not_handed_to_the_runtime() -> None:
    with pytest.raises(StepFailed, match="makes no tokens"):
        talk(Parrot("x"), template=False).answer("")


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="a prompt has more than"):
        converse(talk(Parrot("x")), io.StringIO("x" * (2 * chat_lines.MAX_LINE)))


ENDINGS = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", StepKilled, "crashed (SIGSEGV)"),
    ("os.abort()", StepKilled, "crashed (SIGABRT)"),
    ("os.kill(os.getpid(), signal.SIGKILL)", StepKilled, "ran out of memory"),
    (
        "print('terminate: std::bad_alloc', file=sys.stderr, flush=True); os.abort()",
        StepKilled,
        "ran out of memory",
    ),
    ("os.kill(os.getpid(), signal.SIGTERM)", StepKilled, "crashed (SIGTERM)"),
    ("os._exit(77)", StepKilled, "exit code 77"),
    ("raise RuntimeError('a bug')", StepKilled, "exit code 1"),
    ("x = b'a' * (1 << 29); time.sleep(60)", StepKilled, "PHIPIPE_MEMORY_LIMIT_GIB=0.25"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("does", "kind", "words"), ENDINGS)
def test_every_death_of_the_chat_is_a_sentence(
    does: str,
    kind: type[PhipipeError],
    words: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    call = "import os, signal, sys, time; from pathlib import Path; "
    call += "from phipipe.chat import screen; "
    call += f"screen.enclose(Path(sys.argv[1]) / 'log.txt'); {does}"
    settings = replace(Settings.read(), memory_limit_gib=0.25)
    with pytest.raises(kind, match=re.escape(words)):
        process.hold(
            Path(sys.executable), {"toolchain": "x", "folder": str(tmp_path)}, settings, call
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_the_chats_python_starts_is_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It waits until the chat can take it: nothing is told of a damaged toolchain."""
    early = "import os, signal; os.kill(os.getpid(), signal.SIGINT); "
    request = {"folder": str(tmp_path), "backend": "onnxruntime", "toolchain": "x"}
    request |= {"prompt": "hi", "system": None, "tokens": 1}
    code = process.hold(Path(sys.executable), request, Settings.read(), early + process.SERVE)
    assert code == 130
    assert capfd.readouterr() == ("", "")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_python_that_cannot_start_is_a_toolchain_that_is_damaged(tmp_path: Path) -> None:
    for python in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ToolchainError, match="cannot be started"):
            process.hold(python, {"toolchain": "x", "folder": "y"}, Settings.read())

"""The conversation of ``phipipe chat PACKAGE``: runs inside the backend's toolchain, on the user's
terminal.

On a terminal it is interactive; with other input every line is a prompt of one conversation.
Answers go to stdout, everything else to stderr. Ctrl-C stops the answer, a second one ends the
chat; Ctrl-D or ``/quit`` end it, ``/reset`` forgets what was said.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from phipipe import backends
from phipipe.backends.base import Runtime, Tokenizer
from phipipe.chat import screen
from phipipe.chat.screen import say, show
from phipipe.errors import (
    PhipipeError,
    RecipeError,
    StepFailed,
    StepKilled,
    ToolchainError,
    encoded,
)
from phipipe.package.manifest import read_manifest
from phipipe.processes import children, interrupts, prohibitions
from phipipe.sandbox.child import NO_MEMORY
from phipipe.sandbox.limited import Raised
from phipipe.visible import visible

OK, TOO_LONG, INTERRUPTED = 0, 2, 130
INCOMPLETE = "\ufffd"  # what tokenizers give for the first bytes of a character
KEEP_TOKENS = (
    8  # decoded again with every piece: what a token looks like depends on those before it
)
MAX_LINE = 2**20  # characters of a prompt
MAX_TOLD = 600  # characters of a library's own words
COMMAND = re.compile(r"/[a-z]+", re.IGNORECASE)
COMMANDS = "/reset forgets the conversation, /quit or Ctrl-D ends it, /help says this"


def main(folder: Path, backend: str, prompt: str | None, limit: int, system: str | None) -> int:
    """Chat with the package in ``folder``; answer ``prompt`` only, if there is one.

    Args:
        folder: the package.
        backend: whose toolchain this runs in.
        prompt: the only prompt; None for a conversation.
        limit: tokens of an answer, at most.
        system: a system message.

    Returns:
        The exit code.

    Raises:
        PhipipeError: it cannot be opened, or cannot answer.
    """
    if prompt is not None and not prompt.strip():
        raise RecipeError(
            "the prompt is empty", hint="phipipe chat PACKAGE --prompt 'Tell me a story.'"
        )
    try:
        manifest = read_manifest(folder)
        face = backends.load(backend)
        with refusing("the package cannot be opened", f"phipipe verify {folder}", face.toolchain):
            tokenizer = face.tokenizer(folder)  # before the weights: it is the first to be refused
            runtime = face.open(folder)
        talk = Talk(
            runtime=runtime,
            tokenizer=tokenizer,
            context=manifest.source.context_length,
            limit=limit,
            system=system if manifest.chat_template else None,
            template=manifest.chat_template is not None,
        )
        try:
            return (
                talk.once(prompt)
                if prompt is not None
                else converse(talk, sys.stdin or io.StringIO())
            )
        finally:
            talk.runtime.close()
    except KeyboardInterrupt:
        return INTERRUPTED


@dataclass(kw_only=True)
class Talk:
    """One conversation: what was said, and with whom."""

    runtime: Runtime
    tokenizer: Tokenizer
    context: int  # tokens
    limit: int
    system: str | None = None
    template: bool = (
        True  # without one, a prompt is text to be continued, and nothing is remembered
    )
    messages: list[dict[str, str]] = field(default_factory=list)

    def once(self, prompt: str) -> int:
        """Answer ``prompt``; the exit code."""
        try:
            return OK if self.answer(prompt) else TOO_LONG
        except KeyboardInterrupt:
            show("\n")
            return INTERRUPTED

    def answer(self, prompt: str) -> bool:
        """Stream the answer to ``prompt`` and remember both; False if the context has no room for
        it.

        An answer that is interrupted is remembered as far as it came.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        ids = self._ids(asked)
        if len(ids) >= self.context:
            more = "; /reset forgets what was said" if self.messages else ""
            say(
                f"[that makes {len(ids)} tokens, and the model's context ends at "
                f"{self.context}{more}]"
            )
            return False
        said: list[str] = []
        made: list[int] = []
        try:
            with _closing(self._generated(ids)) as tokens:
                for piece in pieces(self.tokenizer.decode, _noted(tokens, made)):
                    said.append(piece)
                    show(visible(piece))
            show("\n")
        finally:
            if self.template and said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
        self._explain_ending(ids, made)
        return True

    def _generated(self, ids: Sequence[int]) -> Generator[int, None, None]:
        what = "the package's runtime cannot answer"
        with refusing(what):
            answer = self.runtime.generate(ids, min(self.limit, self.context - len(ids)))
        with _closing(answer) as tokens:
            while True:
                with refusing(what):
                    token = next(tokens, None)
                if token is None:
                    return
                yield token

    def _ids(self, asked: Sequence[Mapping[str, str]]) -> list[int]:
        text = asked[-1]["content"]
        if self.template:
            system = [{"role": "system", "content": self.system}] if self.system else []
            try:
                text = self.tokenizer.render([*system, *asked])
            except Raised as error:
                hint = "leave --system out" if self.system else None
                raise StepFailed(
                    f"the package's chat template refuses this conversation: {error}", hint=hint
                ) from None
        with refusing("the package's tokenizer refuses this text"):
            ids = self.tokenizer.encode(text)
        if not ids:
            raise StepFailed("the package's tokenizer makes no tokens of this text")
        return ids

    def _explain_ending(self, prompt: Sequence[int], made: Sequence[int]) -> None:
        """Say so where it was not the model that ended the answer."""
        decode = self.tokenizer.decode
        ended = not made or _decoded(decode, made) == _decoded(
            decode, made[:-1]
        )  # an end token shows nothing
        if len(prompt) + len(made) >= self.context:
            say(f"[the model's context of {self.context} tokens is full]")
        elif len(made) >= self.limit and not ended:
            say(f"[cut after {self.limit} tokens; --tokens allows more]")

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []


def converse(talk: Talk, stream: TextIO) -> int:
    """Answer the lines of ``stream`` until it ends; the exit code."""
    interactive = stream.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        say(f"{COMMANDS}, Ctrl-C stops an answer")
    lines = _typed if interactive else functools.partial(_line, stream)
    interrupted = False
    while True:
        try:
            line = lines()
            if not line or line.strip() == "/quit":
                return OK
            if COMMAND.fullmatch(line.strip()):
                _obey(talk, line.strip())
            elif line.strip() and not talk.answer(line.rstrip("\r\n")) and not interactive:
                return TOO_LONG
            interrupted = False
        except KeyboardInterrupt:
            show("\n")
            if interrupted or not interactive:
                return INTERRUPTED
            interrupted = True
            say("[stopped; Ctrl-C again ends the chat]")


def _obey(talk: Talk, command: str) -> None:
    if command == "/reset":
        talk.reset()
        say("[forgotten]")
    elif command == "/help":
        say(COMMANDS)
    else:
        say(f"[there is no `{command}`: {COMMANDS}]")


def _line(stream: TextIO) -> str:
    """The next prompt; empty only at the end."""
    try:
        line = stream.readline(MAX_LINE)
    except OSError as error:
        raise RecipeError(f"the prompts cannot be read: {error.strerror}") from None
    if len(line) == MAX_LINE:
        raise RecipeError(f"a prompt has more than {MAX_LINE} characters")
    return line


def _typed() -> str:
    """A line as ``readline`` returns it: empty only at the end."""
    try:
        with screen.line_editing():
            return input("> ") + "\n"
    except EOFError:
        show("\n")
        return ""


def pieces(decode: Callable[[Sequence[int]], str], ids: Iterable[int]) -> Iterator[str]:
    """The text of ``ids`` as it grows, in complete characters only.

    Together the pieces are ``decode(ids)``. What a token reads as depends on its neighbours
    (spaces, characters of several tokens), so each piece is what one more token adds to the text of
    the last few.
    """
    held: list[int] = []
    shown = ""  # as much of the text of ``held`` as was yielded
    for token in ids:
        held.append(token)
        text = _decoded(decode, held)
        if text is None or text.endswith(INCOMPLETE):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        shown = text
        if (
            len(held) > 2 * KEEP_TOKENS
            and (rest := _decoded(decode, held[-KEEP_TOKENS:]))
            and text.endswith(rest)
        ):
            held, shown = held[-KEEP_TOKENS:], rest
    text = _decoded(decode, held)
    if text is not None and len(text) > len(shown):
        yield text[len(shown) :]


def _decoded(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> str | None:
    """Text of ``ids``; None where a runtime cannot show a character's first bytes at all."""
    try:
        return decode(ids)
    except UnicodeDecodeError:
        return None
    except Raised as error:
        if error.kind == "UnicodeDecodeError":
            return None
        raise StepFailed(f"the package's tokenizer cannot decode an answer: {error}") from None


def _noted(tokens: Iterable[int], made: list[int]) -> Iterator[int]:
    for token in tokens:
        made.append(token)
        yield token


@contextlib.contextmanager
def _closing(tokens: Iterator[int]) -> Iterator[Iterator[int]]:
    """Ends a generator that is left early, so that its runtime can free what it holds."""
    try:
        yield tokens
    finally:
        if isinstance(tokens, Generator):
            tokens.close()


@contextlib.contextmanager
def refusing(what: str, hint: str | None = None, toolchain: str | None = None) -> Iterator[None]:
    """What a runtime or a library raises in this block, as a failure of ours; ``what`` begins its
    sentence.

    Raises:
        ToolchainError: a package is missing.
        StepKilled: there is not enough memory.
        StepFailed: anything else.
    """
    try:
        yield
    except Raised as error:
        raise StepFailed(f"{what}: {error}", hint=hint) from None
    except (PhipipeError, BrokenPipeError):
        raise
    except ImportError as error:
        install = f"phipipe toolchain install {toolchain} --force" if toolchain else None
        raise ToolchainError(f"the toolchain is damaged: {error}", hint=install) from None
    except Exception as error:  # noqa: BLE001 (runtimes raise whatever they like)
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            raise StepKilled(
                f"{what}: there is not enough memory", hint="close other programs"
            ) from None
        raise StepFailed(f"{what}: {type(error).__name__}: {error}", hint=hint) from None


def serve() -> None:
    """In a process of its own: the conversation of ARGV[1]/request.json; ARGV[1]/response.json says
    how it ended.

    request   {"folder", "backend", "toolchain", "prompt", "system", "tokens"}: see ``main``
    response  {"code"} or {"error"} (``errors.encoded``); without one, the process died
    log.txt   what libraries and native code print: nothing of theirs reaches the terminal
    """
    home = Path(sys.argv[1])
    screen.enclose(home / "log.txt")
    prohibitions.prohibit()
    children.end_with_parent()
    request = json.loads((home / "request.json").read_text("utf-8"))
    aside = home / "response.tmp"
    aside.write_text(json.dumps(_told(request)), "utf-8")
    aside.replace(home / "response.json")
    os._exit(0)  # runtimes have crashed when taken down: there is nothing left to do


def _told(request: Mapping[str, Any]) -> dict[str, Any]:
    """How the conversation ended."""
    prompt, system = (
        None if text is None else _clean(text) for text in (request["prompt"], request["system"])
    )
    try:
        interrupts.take()  # not before: in the middle of Python's own start they end in a traceback
        with refusing(
            "the chat failed", f"phipipe verify {request['folder']}", request["toolchain"]
        ):
            return {
                "code": main(
                    Path(request["folder"]), request["backend"], prompt, request["tokens"], system
                )
            }
    except PhipipeError as error:
        told = " ".join(visible(error.message).split())
        cut = told if len(told) <= MAX_TOLD else f"{told[:MAX_TOLD]} …"
        return {
            "error": encoded(error)
            | {"message": cut, "hint": visible(error.hint) if error.hint else None}
        }
    except BrokenPipeError:  # the reader of our output went away (| head)
        return {"code": OK}
    except KeyboardInterrupt:
        return {"code": INTERRUPTED}


def _clean(text: str) -> str:
    """``text`` from a command line that may not have been UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

"""The conversation of ``phipipe chat PACKAGE``: runs inside the backend's toolchain, on the user's terminal.

On a terminal it is interactive; with other input every line is a prompt of one conversation. Answers go to
stdout, everything else to stderr. Ctrl-C stops the answer, a second one ends the chat; Ctrl-D or ``/quit``
end it, ``/reset`` forgets what was said.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from phipipe import backends
from phipipe.backends.base import Runtime, Tokenizer
from phipipe.errors import PhipipeError, StepFailed
from phipipe.manifest import read_manifest

OK, TOO_LONG, INTERRUPTED = 0, 2, 130
INCOMPLETE = "\ufffd"  # what tokenizers give for the first bytes of a character
KEEP_TOKENS = 8  # decoded again with every piece: what a token looks like depends on those before it


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
    """
    try:
        manifest = read_manifest(folder)
        module = backends.load(backend)
        talk = Talk(
            runtime=module.open(folder),
            tokenizer=module.tokenizer(folder),
            context=int(manifest["source"]["context_length"]),
            limit=limit,
            system=system if manifest["chat_template"] else None,
            template=bool(manifest["chat_template"]),
        )
        try:
            return talk.once(prompt) if prompt is not None else converse(talk, sys.stdin)
        finally:
            talk.runtime.close()
    except PhipipeError as error:
        _say(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        return OK


@dataclass(kw_only=True)
class Talk:
    """One conversation: what was said, and with whom."""

    runtime: Runtime
    tokenizer: Tokenizer
    context: int  # tokens
    limit: int
    system: str | None = None
    template: bool = True  # without one, a prompt is text to be continued, and nothing is remembered
    messages: list[dict[str, str]] = field(default_factory=list)

    def once(self, prompt: str) -> int:
        """Answer ``prompt``; the exit code."""
        try:
            return OK if self.answer(prompt) else TOO_LONG
        except KeyboardInterrupt:
            print(flush=True)
            return INTERRUPTED

    def answer(self, prompt: str) -> bool:
        """Stream the answer to ``prompt`` and remember both; False if the context has no room for it.

        An answer that is interrupted is remembered as far as it came.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        ids = self._ids(asked)
        if len(ids) >= self.context:
            more = "; /reset forgets what was said" if self.messages else ""
            _say(f"[that makes {len(ids)} tokens, and the model's context ends at {self.context}{more}]")
            return False
        said: list[str] = []
        made: list[int] = []
        try:
            with _closing(self.runtime.generate(ids, min(self.limit, self.context - len(ids)))) as tokens:
                for piece in pieces(self.tokenizer.decode, _noted(tokens, made)):
                    said.append(piece)
                    print(visible(piece), end="", flush=True)
            print(flush=True)
        finally:
            if self.template and said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
        self._explain_ending(ids, made)
        return True

    def _ids(self, asked: Sequence[Mapping[str, str]]) -> list[int]:
        if not self.template:
            return self.tokenizer.encode(asked[-1]["content"])
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return self.tokenizer.encode(self.tokenizer.render([*system, *asked]))
        except Exception as error:  # noqa: BLE001 (templates raise whatever they like, through any runtime)
            raise StepFailed(f"the package's chat template refuses this conversation: {error}") from None

    def _explain_ending(self, prompt: Sequence[int], made: Sequence[int]) -> None:
        """Say so where it was not the model that ended the answer."""
        decode = self.tokenizer.decode
        ended = not made or _decoded(decode, made) == _decoded(decode, made[:-1])  # an end token shows nothing
        if len(prompt) + len(made) >= self.context:
            _say(f"[the model's context of {self.context} tokens is full]")
        elif len(made) >= self.limit and not ended:
            _say(f"[cut after {self.limit} tokens; --tokens allows more]")

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []


def converse(talk: Talk, stream: TextIO) -> int:
    """Answer the lines of ``stream`` until it ends; the exit code."""
    interactive = stream.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        _say("/reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer")
    lines = _typed if interactive else stream.readline
    interrupted = False
    while True:
        try:
            line = lines()
            if not line or line.strip() == "/quit":
                return OK
            if line.strip() == "/reset":
                talk.reset()
                _say("[forgotten]")
            elif line.strip() and not talk.answer(line.rstrip("\r\n")) and not interactive:
                return TOO_LONG
            interrupted = False
        except KeyboardInterrupt:
            print(flush=True)
            if interrupted or not interactive:
                return INTERRUPTED
            interrupted = True
            _say("[stopped; Ctrl-C again ends the chat]")


def _typed() -> str:
    """A line as ``readline`` returns it: empty only at the end."""
    try:
        return input("> ") + "\n"
    except EOFError:
        print(flush=True)
        return ""


def pieces(decode: Callable[[Sequence[int]], str], ids: Iterable[int]) -> Iterator[str]:
    """The text of ``ids`` as it grows, in complete characters only.

    Together the pieces are ``decode(ids)``. What a token reads as depends on its neighbours (spaces, characters
    of several tokens), so each piece is what one more token adds to the text of the last few.
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
        if len(held) > 2 * KEEP_TOKENS and (rest := _decoded(decode, held[-KEEP_TOKENS:])) and text.endswith(rest):
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


def visible(text: str) -> str:
    """``text`` without control characters: a model's answer must not command the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

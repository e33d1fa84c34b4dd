"""A talk with a package from Python: prompts and answers as values, the model in a process of its
own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from phipipe.chat.peer import Peer
from phipipe.errors import RecipeError, decoded
from phipipe.settings import Settings
from phipipe.steps import Json

SERVE = "from phipipe.chat.exchange import serve; serve()"

OnText = Callable[[str], object]
"""A function that gets an answer piece by piece."""


class Conversation:
    """A conversation with a package, which remembers what was said.

    ``Package.conversation`` begins one; use it in a ``with`` block. Ctrl-C and an error of the
    runtime end it.

    Attributes:
        messages: what was said, each with ``role`` and ``content``.
        notes: what there is to say of the last answer, such as that it was cut.
    """

    def __init__(
        self, python: Path, request: Mapping[str, Json], settings: Settings, call: str = SERVE
    ) -> None:
        """Start the process that holds the conversation of ``request`` (``chat.exchange``).

        ``call`` is what the process does.
        """
        self.messages: list[dict[str, str]] = []
        self.notes: list[str] = []
        self._peer: Peer | None = Peer(python, request, settings, call)

    def ask(self, prompt: str, on_text: OnText | None = None) -> str:
        """Ask, and return the whole answer. Control characters in it are escaped.

        Args:
            prompt: what you say.
            on_text: a function that gets the answer piece by piece.

        Raises:
            RecipeError: the prompt is empty, or the model's context has no room for it.
            StepFailed, StepKilled: the runtime refuses it, or was ended.
        """
        check_prompt(prompt)
        self.notes.clear()
        pieces: list[str] = []

        def heard(piece: str) -> None:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

        answered = self._exchange({"prompt": clean(prompt)}, heard)
        if not answered:
            raise RecipeError(
                self.notes[-1] if self.notes else "the prompt is too long",
                hint="a shorter prompt, or reset() to forget what was said",
            )
        answer = "".join(pieces).removesuffix("\n")
        self.messages += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        return answer

    def reset(self) -> None:
        """Forget what was said."""
        self._send({"reset": True})
        self.messages.clear()

    def close(self) -> None:
        """End the conversation. Twice is fine."""
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(self, message: Mapping[str, Json], heard: OnText) -> bool:
        """Send ``message``, and hear the answer; whether there was one."""
        try:
            self._send(message)
            return bool(self._until("end", heard))
        except BaseException:
            self.close()
            raise

    def _send(self, message: Mapping[str, Json]) -> None:
        self._begun().send(message)

    def _begun(self) -> Peer:
        if self._peer is None:
            raise RecipeError("the conversation has ended", hint="begin another")
        return self._peer

    def _until(self, last: str, heard: OnText) -> Json:
        """What the message ``last`` says, after those that come before it."""
        while True:
            message = self._begun().next()
            if last in message:
                return message[last]
            if "error" in message:
                raise decoded(message["error"])
            if "note" in message:
                self.notes.append(message["note"])
            else:
                heard(message["text"])


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing.

    Raises:
        RecipeError: it is empty.
        TypeError: it is no text.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt is {type(prompt).__name__}: give a text")
    if not prompt.strip():
        raise RecipeError("the prompt is empty", hint="package.chat('Tell me a story.')")


def clean(text: str) -> str:
    """``text`` without halves of surrogate pairs, which no tokenizer takes."""
    lone = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)  # stand for no byte
    return lone.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

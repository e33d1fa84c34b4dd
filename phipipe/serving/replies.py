"""Answers as OpenAI's API has them: whole, or as the events of a stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phipipe.evaluate import calls
from phipipe.serving.held import first_of, held_back
from phipipe.steps import Json

# What begins a call in the middle of an answer; without one, the whole answer has to be the call.
MARKS = ("<|tool_call|>", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
BARE = "{["  # what a call without a mark begins with

Call = tuple[str, Mapping[str, Json]]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of the prompt, special ones included, and of the answer, its end token included."""

    prompt: int
    answer: int

    def document(self) -> dict[str, Json]:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
        }


class Sorted:
    """The text of an answer with tools, as it comes: what may be a call is held back until the
    whole is known."""

    def __init__(self, tools: Sequence[Mapping[str, Json]], several: bool) -> None:
        self._tools, self._several = tools, several
        self._text, self._shown = "", 0

    def feed(self, piece: str) -> str:
        """What can be shown now that ``piece`` has come too."""
        self._text += piece
        if not self._tools:
            return self._until(len(self._text))
        begun = self._text.lstrip()
        if not begun or begun[0] in BARE:
            return ""
        at = first_of(self._text, MARKS)
        return self._until(at if at >= 0 else len(self._text) - held_back(self._text, MARKS))

    def end(self) -> tuple[str, list[Call]]:
        """What is left to show, and the calls."""
        if not self._tools:
            return "", []
        text, found = calls.split(self._text, self._tools)
        rest = text[self._shown :]
        return rest, found if self._several else found[:1]

    def _until(self, end: int) -> str:
        shown = self._text[self._shown : end]
        self._shown = max(self._shown, end)
        return shown


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What all documents of one answer have in common."""

    model: str
    created: int  # seconds since 1970
    fingerprint: str
    is_chat: bool
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:24])

    def whole(self, text: str, found: Sequence[Call], reason: str, usage: Usage) -> dict[str, Json]:
        """The answer in one document."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        choice: dict[str, Json] = {"index": 0, "logprobs": None}
        if self.is_chat:
            message: dict[str, Json] = {"role": "assistant", "content": text, "refusal": None}
            if found:
                message |= {"content": text or None, "tool_calls": list(map(_called, found))}
            choice["message"] = message
        else:
            choice["text"] = text
        choice["finish_reason"] = "tool_calls" if found else reason
        return {**self._head(kind), "choices": [choice], "usage": usage.document()}

    def opening(self) -> dict[str, Json]:
        """The first event of a chat's stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Json]:
        """An event with a piece of the text."""
        return self._chunk({"content": text} if self.is_chat else text, None)

    def called(self, found: Sequence[Call]) -> dict[str, Json]:
        """An event with all tool calls."""
        told = [{"index": i, **_called(call)} for i, call in enumerate(found)]
        return self._chunk({"tool_calls": told}, None)

    def closing(self, reason: str) -> dict[str, Json]:
        """The event that says why the answer has ended."""
        return self._chunk({} if self.is_chat else "", reason)

    def counted(self, usage: Usage) -> dict[str, Json]:
        """The event with the usage."""
        return {**self._head(self._kind), "choices": [], "usage": usage.document()}

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(self, delta: Json, reason: str | None) -> dict[str, Json]:
        name = "delta" if self.is_chat else "text"
        choice = {"index": 0, name: delta, "logprobs": None, "finish_reason": reason}
        return {**self._head(self._kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Json]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _called(call: Call) -> dict[str, Json]:
    name, arguments = call
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}

"""Prompts that a model and its builds answer: chats, one JSON object a line.

    {"messages": [{"role": "user", "content": "…"}], "tools": [{"type": "function", …}]}

``messages`` are as in every chat API; the last one is what the model answers. ``tools``, where a
prompt has some, are functions with JSON Schemas as the field's APIs take them, or bare ones (name,
description, parameters), as Phi-4-mini's page shows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files, user_paths
from phipipe.recipe.places import MAX_PROBLEMS, Document, Problem, Where
from phipipe.steps import Json
from phipipe.suggestions import near, shorten, show

ROLES = ("system", "user", "assistant", "tool")
ASKING = ("user", "tool")  # whose message a model answers
KEYS = ("messages", "tools")
MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")
MAX_BYTES, MAX_PROMPTS = 16 * 2**20, 10_000
_BREAKS = "[\r\x85\u2028\u2029]"  # of no line here: JSON's texts may hold some of them
HINT = 'one object a line: {"messages": [{"role": "user", "content": "…"}]}'


@dataclass(frozen=True)
class Prompt:
    """A chat that waits for its next message.

    Attributes:
        line: where it stands in its file, from 1.
        messages: ``role`` and ``content`` each; of an assistant also ``tool_calls``.
        tools: what the model may call; none in most chats.
    """

    line: int
    messages: Sequence[Mapping[str, Json]]
    tools: Sequence[Mapping[str, Json]] = ()


class _Wrong(ValueError):
    """A value that will not do; ``where`` it is inside of its line."""

    def __init__(self, message: str, *where: str | int) -> None:
        super().__init__(message)
        self.where: Where = where


def read(path: Path) -> list[Prompt]:
    """The prompts in ``path``, in order; empty lines are passed over.

    Raises:
        SourceError: the file cannot be read or has no prompt; or lines are no prompts, each told as
            ``file:line:column``.
    """
    named = user_paths.shown(path)
    lines = json_files.read_bytes(path, MAX_BYTES).split(b"\n")
    found: list[Prompt] = []
    wrong: list[Problem] = []
    for number, raw in enumerate(lines, 1):
        if not raw.strip() or len(wrong) >= MAX_PROBLEMS:
            continue
        try:
            found.append(_prompt(raw, number, path))
        except _Wrong as error:
            column = _column(raw.decode("utf-8", "replace"), error.where)
            wrong.append(Problem(number, column, str(error)))
    if wrong:
        text = re.sub(_BREAKS, " ", b"\n".join(lines).decode("utf-8", "replace"))
        told = Document(named, text).error(wrong)
        raise SourceError(told.message, hint=HINT, problems=told.problems)
    if not found:
        raise SourceError(f"`{named}` has no prompts: it is empty", hint=HINT)
    if len(found) > MAX_PROMPTS:
        count = f"{len(found):,}"
        raise SourceError(f"`{named}` has {count} prompts, and at most {MAX_PROMPTS:,} make sense")
    return found


def functions(tools: Sequence[Mapping[str, Json]]) -> dict[str, Mapping[str, Json]]:
    """What each of ``tools`` is called → its own description: ``name``, ``parameters``."""
    inner = [tool.get("function", tool) for tool in tools]
    return {one["name"]: one for one in inner}


def _prompt(raw: bytes, number: int, path: Path) -> Prompt:
    try:
        value = json_files.parse(raw, path)
    except SourceError as error:
        reason = error.message.partition(" is not valid JSON: ")[2] or error.message
        at = re.search(r": line \d+ column (\d+) \(char \d+\)", reason)
        words = reason[: at.start()] if at else reason
        raise _Wrong(f"this is not valid JSON: {words}", int(at[1]) if at else 1) from None
    if not isinstance(value, dict):
        raise _Wrong(f"expected an object with `messages`, got {show(value)}")
    for key in value:
        if key not in KEYS:
            raise _Wrong(f"unknown key `{shorten(key)}`{near(key, KEYS)}", key)
    _check_messages(value.get("messages"))
    _check_tools(value.get("tools", []))
    return Prompt(number, value["messages"], value.get("tools", []))


def _check_messages(messages: Json) -> None:
    if not isinstance(messages, list) or not messages:
        raise _Wrong(f"`messages` is a list of messages, and here is {_what(messages)}", "messages")
    for i, message in enumerate(messages):
        _check_message(message, "messages", i)
    last = messages[-1]["role"]
    if last not in ASKING:
        at = ("messages", len(messages) - 1, "role")
        raise _Wrong(f"the last message is of `{last}`; a model answers user or tool", *at)


def _check_message(message: Json, *at: str | int) -> None:
    if not isinstance(message, dict):
        raise _Wrong(f"a message is an object with `role` and `content`, not {show(message)}", *at)
    for key in message:
        if key not in MESSAGE_KEYS:
            raise _Wrong(f"unknown key `{shorten(key)}`{near(key, MESSAGE_KEYS)}", *at, key)
    role = message.get("role")
    if role not in ROLES:
        guess = near(role, ROLES) if isinstance(role, str) else ""
        known = ", ".join(ROLES)
        given = f"`{shorten(role)}`" if isinstance(role, str) else _what(role)
        raise _Wrong(f"unknown role: {given}; it is one of {known}{guess}", *at, "role")
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and (role != "assistant" or not isinstance(calls, list)):
        raise _Wrong("`tool_calls` is a list, and stands in answers alone", *at, "tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
        raise _Wrong(f"`content` is text, and here is {_what(content)}", *at, "content")


def _check_tools(tools: Json) -> None:
    if not isinstance(tools, list):
        raise _Wrong(f"`tools` is a list of functions, and here is {_what(tools)}", "tools")
    names: set[str] = set()
    for i, tool in enumerate(tools):
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(name, str) or not name:
            raise _Wrong("a tool is an object with a `name`, or a `function` with one", "tools", i)
        if not isinstance(inner.get("parameters", {}), dict):
            raise _Wrong(f"`parameters` of `{shorten(name)}` is an object", "tools", i)
        if name in names:
            raise _Wrong(f"two tools are called `{shorten(name)}`", "tools", i)
        names.add(name)


def _what(value: Json) -> str:
    return "an empty list" if value == [] else show(value)


def _column(text: str, where: Where) -> int:
    """Where in the line ``text`` the value at ``where`` stands, or the nearest thing around it that
    does; from 1. A number alone is the column itself: that of a line which is no JSON."""
    if len(where) == 1 and isinstance(where[0], int):
        return where[0]
    at = _skip(text, 0)
    for part in where:
        inner = next((start for key, start in _inside(text, at) if key == part), None)
        if inner is None:
            break
        at = inner
    return at + 1


def _inside(text: str, at: int) -> Iterator[tuple[str | int, int]]:
    """(key or number, where its value starts) of all that the value at ``at`` holds; ``text`` is
    valid JSON."""
    reader = json.JSONDecoder()
    closing, number = {"{": "}", "[": "]"}.get(text[at]), 0
    if closing is None:
        return
    at = _skip(text, at + 1)
    while text[at] != closing:
        key: str | int = number
        if closing == "}":
            key, at = reader.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        yield key, at
        _, at = reader.raw_decode(text, at)
        at, number = _skip(text, at), number + 1
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    """The first place from ``at`` on that is no white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at

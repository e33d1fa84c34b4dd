"""Chats with tools in a model's own chat template, and whether it shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from phipipe.models import prompts
from phipipe.sandbox.limited import Raised
from phipipe.steps import Json

# What a template says in which tools stand in the system message, where a chat has none.
WITH_TOOLS = "You are a helpful assistant with some tools."

Chat = Sequence[Mapping[str, Json]]


class Renderer(Protocol):
    """What renders chats: a ``Tokenizer`` of ``backends.base``."""

    def render(self, messages: Chat, ask: bool = True, tools: Chat | None = None) -> str:
        """``messages`` in the chat template, ready for the answer if it is to ``ask`` for one."""


def rendered(tokenizer: Renderer, chat: Chat, offered: Chat) -> tuple[str, list[dict[str, Json]]]:
    """The ``chat`` in the template, and those of the tools that are ``offered`` which it shows: all
    of them or none. One is shown where its name stands more often than without it.

    They are given as templates take them today, then as Phi-4-mini's does, in the system message.

    Raises:
        limited.Raised: the template refuses the chat.
        SourceError: it takes more than it may.
    """
    plain = tokenizer.render(chat)
    if not offered:
        return plain, []
    tools, names = [dict(tool) for tool in offered], prompts.functions(offered)
    told, rest = {"role": "system", "content": WITH_TOOLS}, list(chat)
    if rest[0]["role"] == "system":
        told, *rest = [dict(rest[0]), *rest[1:]]
    inside = [{**told, "tools": json.dumps(list(names.values()), ensure_ascii=False)}, *rest]
    for messages, given, without in ((chat, tools, chat), (inside, None, [told, *rest])):
        text, bare = _tried(tokenizer, messages, given), _tried(tokenizer, without, None)
        if text is not None and all(text.count(name) > (bare or "").count(name) for name in names):
            return text, tools
    return plain, []


def _tried(tokenizer: Renderer, messages: Chat, tools: Chat | None) -> str | None:
    try:
        return tokenizer.render(messages, tools=tools)
    except Raised:  # it knows no tools, or no system message
        return None

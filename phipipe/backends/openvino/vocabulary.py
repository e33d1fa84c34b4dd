"""The tokenizer graphs in a folder, as openvino-genai reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import openvino_genai

from phipipe.steps import Json


class GenaiTokenizer:
    """For a limited child: ``Tokenizer`` as openvino-genai reads it; it does not load the
    weights."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = openvino_genai.Tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0]
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Json]] | None = None,
    ) -> str:
        chat = [dict(message) for message in messages]
        given = None if tools is None else [dict(tool) for tool in tools]
        return str(
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=ask, tools=given)
        )

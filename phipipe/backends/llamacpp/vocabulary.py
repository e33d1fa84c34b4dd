"""The tokenizer and the chat template inside a GGUF, as llama.cpp reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from phipipe.backends.llamacpp.model import Model
from phipipe.errors import StepFailed
from phipipe.steps import Json


class Vocabulary:
    """For a limited child: the tokenizer and the chat template inside a GGUF."""

    def __init__(self, path: str) -> None:
        self._model = Model(Path(path), vocab_only=True)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        buffer = (ctypes.c_int32 * room)()
        # (add special tokens: no, read special tokens in the text: yes)
        count = llama_cpp.llama_tokenize(
            self._model.vocab, data, len(data), buffer, room, False, True
        )
        if count < 0:
            raise StepFailed("llama.cpp could not tokenize a text")
        return list(buffer[:count])

    def decode(self, ids: Sequence[int]) -> str:
        shown = [i for i in ids if not llama_cpp.llama_vocab_is_control(self._model.vocab, i)]
        tokens = (ctypes.c_int32 * len(shown))(*shown)
        room = 64 * len(shown) + 64
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(
            self._model.vocab, tokens, len(shown), buffer, room, False, False
        )
        return buffer.raw[: max(count, 0)].decode("utf-8", "replace")

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Json]] | None = None,
    ) -> str:
        template = self._model.meta("tokenizer.chat_template")
        if template is None:
            raise StepFailed("the GGUF has no chat template")
        formatter = Jinja2ChatFormatter(
            template,
            eos_token=self._text("eos"),
            bos_token=self._text("bos"),
            add_generation_prompt=ask,
        )
        given = None if tools is None else [dict(tool) for tool in tools]
        return str(formatter(messages=[dict(m) for m in messages], tools=given).prompt)

    def _text(self, name: str) -> str:
        token = getattr(llama_cpp, f"llama_vocab_{name}")(self._model.vocab)
        text = llama_cpp.llama_vocab_get_text(self._model.vocab, token) if token >= 0 else b""
        return str((text or b"").decode("utf-8", "replace"))

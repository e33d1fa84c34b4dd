"""The tokenizer of a folder of ONNX Runtime GenAI, which two backends write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.sandbox.tokenizer import LimitedTokenizer


def tokenizer(folder: Path) -> LimitedTokenizer:
    """The folder's tokenizer as onnxruntime-genai reads it, in a limited child."""
    from phipipe.sandbox.tokenizer import open_in_child

    return open_in_child("phipipe.backends.genai:GenaiTokenizer", folder, ["onnxruntime_genai"])


class GenaiTokenizer:
    """For a limited child: ``Tokenizer`` as onnxruntime-genai reads it; it does not load the
    weights."""

    def __init__(self, folder: str) -> None:
        import onnxruntime_genai as genai  # in the child alone

        self._tokenizer = genai.Tokenizer(folder)
        self._tokenizer.update_options(add_special_tokens="false", skip_special_tokens="true")

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        # SentencePiece's mark of a first word
        return str(self._tokenizer.decode(list(ids))).removeprefix(" ")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        chat = json.dumps([dict(message) for message in messages])
        return str(self._tokenizer.apply_chat_template(chat, add_generation_prompt=True))

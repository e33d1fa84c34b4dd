"""The tokenizer that ships in a folder, for every runtime that reads it through transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class TransformersTokenizer:
    """``Tokenizer`` over one of transformers', or over what wraps one (mlx-lm's)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without added special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat in the folder's template, ready for the answer."""
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def of_folder(folder: Path) -> TransformersTokenizer:
    """What transformers reads from ``folder``; nothing is downloaded, no code of the folder's is run."""
    from transformers import AutoTokenizer

    return TransformersTokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))

"""What transformers reads in a folder: its config, and the tokenizer for every runtime that takes it from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe import models


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


def config_of(folder: Path) -> Any:
    """The folder's config where transformers would misread it; None, its own default, everywhere else."""
    from transformers import AutoConfig

    told = json.loads((folder / "config.json").read_text("utf-8"))
    changed = models.respelled(told)
    return AutoConfig.for_model(**told | changed) if changed else None


def load(folder: Path) -> Any:
    """transformers' own tokenizer of ``folder``; nothing is downloaded, no code of the folder's is run."""
    from transformers import AutoTokenizer

    settings = {"trust_remote_code": False, "local_files_only": True}
    return AutoTokenizer.from_pretrained(folder, config=config_of(folder), **settings)


def of_folder(folder: Path) -> TransformersTokenizer:
    """``Tokenizer`` over what transformers reads from ``folder``."""
    return TransformersTokenizer(load(folder))

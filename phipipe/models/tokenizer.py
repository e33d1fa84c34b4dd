"""The tokenizer that transformers reads from a folder, for every runtime that takes it from there:
in a limited child (``limited``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe.sandbox import tokenizer as limited_tokenizer
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Json


class TransformersTokenizer:
    """``Tokenizer`` over one of transformers', or over what wraps one (mlx-lm's)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def facts(self) -> dict[str, Json]:
        """chat_template (None, text, or texts by name), bos_token, bos_token_id, eos_token_id."""
        names = ("chat_template", "bos_token", "bos_token_id", "eos_token_id")
        return {name: getattr(self._tokenizer, name, None) for name in names}

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; without added special tokens, unless they are asked for."""
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, number: int) -> str:
        """What stands in the vocabulary as ``number``."""
        return str(self._tokenizer.convert_ids_to_tokens(number))

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Json]] | None = None,
    ) -> str:
        """A chat in the folder's template, ready for the answer unless it is not to ``ask`` for
        one; with ``tools``, where the template shows them."""
        more = {} if tools is None else {"tools": list(tools)}
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=ask, **more
            )
        )


def of_folder(folder: Path, whose: str = "package", python: Path | None = None) -> LimitedTokenizer:
    """The tokenizer that transformers reads from ``folder``; see ``open_in_child``."""
    imports = ("transformers:AutoTokenizer", "transformers:AutoConfig")
    return limited_tokenizer.open_in_child(
        "phipipe.models.transformers_files:opened", folder, imports, whose, python
    )


def of_source(folder: Path, python: Path | None = None) -> LimitedTokenizer:
    """The tokenizer of the checkpoint in ``folder``."""
    return of_folder(folder, "checkpoint", python)


def of_file(folder: Path, python: Path | None = None) -> LimitedTokenizer:
    """The tokenizer that ``tokenizer.json`` in the checkpoint ``folder`` describes, as it stands;
    it renders no chats."""
    return limited_tokenizer.open_in_child(
        "phipipe.models.tokenizer_file:opened", folder, ("tokenizers",), "checkpoint", python
    )

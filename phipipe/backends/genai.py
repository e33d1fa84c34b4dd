"""The tokenizer of a folder of ONNX Runtime GenAI, which two backends write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.models import vocabulary_kinds
from phipipe.steps import Json

UNCUT = "GemmaTokenizer"  # the class of pieces that onnxruntime-genai does not cut at spaces

if TYPE_CHECKING:
    from phipipe.sandbox.tokenizer import LimitedTokenizer


def tokenizer(folder: Path) -> LimitedTokenizer:
    """The folder's tokenizer as onnxruntime-genai reads it, in a limited child."""
    from phipipe.sandbox.tokenizer import open_in_child

    return open_in_child("phipipe.backends.genai:GenaiTokenizer", folder, ["onnxruntime_genai"])


def keep_runs_of_spaces(folder: Path) -> None:
    """Name the class in ``folder``'s ``tokenizer_config.json`` with which onnxruntime-genai reads
    pieces (SentencePiece's) as ``tokenizer.json`` has them.

    For all others it cuts before the last of several spaces, so ``a  b`` is read as ``▁a ▁ ▁b``
    where the vocabulary has ``▁▁`` (0.18; ``SpmTokenize`` in onnxruntime-extensions).
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file() or vocabulary_kinds.of(folder) != vocabulary_kinds.PIECES:
        return
    settings = json.loads(path.read_text("utf-8")) | {"tokenizer_class": UNCUT}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


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

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Json]] | None = None,
    ) -> str:
        chat = json.dumps([dict(message) for message in messages])
        more = {} if tools is None else {"tools": json.dumps([dict(tool) for tool in tools])}
        return str(self._tokenizer.apply_chat_template(chat, add_generation_prompt=ask, **more))

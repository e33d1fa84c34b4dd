"""A vocabulary of pieces, as SentencePiece makes them, from ``tokenizer.json`` alone.

llama.cpp joins the two neighbours whose piece has the highest score, again and again
(src/llama-vocab.cpp); ``tokenizer.json`` has the order of the joins instead of scores. What is
joined first gets the highest score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf

from phipipe.steps import Json

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ABSENT, _ADDED = -10000.0, -1000.0  # scores as the converter sets them, of no effect


def write(
    writer: gguf.GGUFWriter, source: Path, whole: Mapping[str, Json], config: Mapping[str, Json]
) -> None:
    """Write the vocabulary of ``whole``, the ``tokenizer.json`` of the checkpoint ``source``, to
    the header that ``writer`` makes; ``config`` is the model's."""
    table = vocabulary(whole, int(config["vocab_size"]))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in table])
    writer.add_token_scores([score for _, score, _ in table])
    writer.add_token_types([kind for _, _, kind in table])
    writer.add_add_space_prefix(puts_space_first(whole))
    gguf.SpecialVocab(source, n_vocab=len(table)).add_to_gguf(writer)


def vocabulary(whole: Mapping[str, Json], size: int) -> list[tuple[str, float, int]]:
    """Text, score and llama.cpp's type of each of ``size`` tokens; those that ``whole``, a
    ``tokenizer.json``, does not have are unused."""
    model = whole["model"]
    scores: dict[str, float] = {}
    merges = model.get("merges") or []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    lowest = -float(len(merges))
    unused = int(gguf.TokenType.UNUSED)
    table = [(f"[PAD{i}]", _ABSENT, unused) for i in range(size)]
    for text, number in model["vocab"].items():
        kind = gguf.TokenType.BYTE if _BYTE.fullmatch(text) else gguf.TokenType.NORMAL
        if text == model.get("unk_token"):
            kind = gguf.TokenType.UNKNOWN
        table[number] = (text, scores.get(text, lowest), int(kind))
    for token in whole.get("added_tokens") or ():
        special = bool(token.get("special"))
        kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        # what is found in texts before they are normalized has real spaces
        text = token["content"] if special else token["content"].replace("\u2581", " ")
        table[token["id"]] = (text, _ADDED, int(kind))
    return table


def puts_space_first(whole: Mapping[str, Json]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    normalizer, cut = whole.get("normalizer") or {}, whole.get("pre_tokenizer") or {}
    parts = [*normalizer.get("normalizers", [normalizer]), *cut.get("pretokenizers", [cut])]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )

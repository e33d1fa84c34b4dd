"""llama.cpp's names for the ways in which tokenizers cut text into words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.errors import StepFailed
from phipipe.steps import Json

# How byte-level BPE tokenizers cut text into words → llama.cpp's name for it
# (src/llama-vocab.cpp).
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2, DIGITS = "GPT-2", "digits"  # the library's own expression; each digit for itself
CL100K = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACE
PRE_TOKENIZERS: Mapping[tuple[str, ...], str] = {
    (GPT2,): "phi-2",
    (DIGITS, GPT2): "smollm",  # SmolLM2
    (_WORD + CL100K,): "dbrx",  # Phi-4, cl100k
    (_WORD + CL100K.replace("{1,3}", ""),): "qwen2",
    (
        r"[^\r\n\p{L}\p{N}]?"  # Phi-4-mini, o200k
        + rf"{_UPPER}*{_LOWER}+{_WORD}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD}?"
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
        + _SPACE,
    ): "gpt-4o",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
        + _SPACE,
    ): "tekken",  # Mistral Nemo, Ministral
}
# The same with words that are tokens as they stand, whatever their merges (`ignore_merges`).
WHOLE_WORDS: Mapping[str, str] = {"dbrx": "llama-bpe"}


def name_of(source: Path) -> str:
    """llama.cpp's name for how ``source``'s tokenizer cuts text before it merges bytes.

    The converter knows vocabularies by a hash, so it knows those of the originals alone. The
    regular expression says the same; whether token ids are the original's is checked after every
    conversion.

    Raises:
        StepFailed: it is none that llama.cpp has.
    """
    path = source / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    name = PRE_TOKENIZERS.get(cuts_of(whole))
    if name is None:
        raise StepFailed(
            "llama.cpp knows neither this vocabulary nor how its tokenizer cuts text into words"
        )
    words = (whole.get("model") or {}).get("ignore_merges")
    return WHOLE_WORDS.get(name, name) if words else name


def cuts_of(whole: Mapping[str, Json]) -> tuple[str, ...]:
    """The ways in which a ``tokenizer.json`` cuts text, one after the other: regular expressions,
    ``DIGITS``, ``GPT2``; what is none of these by its type."""
    settings = whole.get("pre_tokenizer") or {}
    return tuple(
        cut for part in settings.get("pretokenizers", [settings]) for cut in _cuts_of_part(part)
    )


def _cuts_of_part(part: Mapping[str, Json]) -> Iterator[str]:
    kind, pattern = part.get("type"), part.get("pattern") or {}
    if kind == "ByteLevel":
        yield from [GPT2] if part.get("use_regex", True) else []
    elif kind == "Split" and "Regex" in pattern:
        yield str(pattern["Regex"])
    elif kind == "Digits" and part.get("individual_digits"):
        yield DIGITS
    else:
        yield str(kind)

"""llama.cpp's names for the ways in which tokenizers cut text into words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import StepFailed

# How byte-level BPE tokenizers of the family cut text into words → llama.cpp's name for it
# (src/llama-vocab.cpp).
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, str] = {
    "GPT-2": "phi-2",
    _WORD
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _SPACE: "dbrx",  # Phi-4, cl100k
    r"[^\r\n\p{L}\p{N}]?"  # Phi-4-mini, o200k
    + rf"{_UPPER}*{_LOWER}+{_WORD}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _SPACE: "gpt-4o",
}


def name_of(source: Path) -> str:
    """llama.cpp's name for how ``source``'s tokenizer cuts text before it merges bytes.

    The converter knows vocabularies by a hash, so it knows those of the originals alone. The
    regular expression says the same; whether token ids are the original's is checked after every
    conversion.

    Raises:
        StepFailed: it is none of the family's.
    """
    settings = json.loads((source / "tokenizer.json").read_text("utf-8")).get("pre_tokenizer") or {}
    parts = settings.get("pretokenizers", [settings])
    patterns = [part["pattern"]["Regex"] for part in parts if "Regex" in part.get("pattern", {})]
    cuts = patterns or [
        "GPT-2" for part in parts if part.get("type") == "ByteLevel" and part.get("use_regex", True)
    ]
    if len(cuts) != 1 or cuts[0] not in PRE_TOKENIZERS:
        raise StepFailed(
            "llama.cpp knows neither this vocabulary nor how its tokenizer cuts text into words"
        )
    return PRE_TOKENIZERS[cuts[0]]

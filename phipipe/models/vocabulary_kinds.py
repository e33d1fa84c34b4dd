"""Which kind of vocabulary a checkpoint has, by its tokenizer's files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.files import json_files
from phipipe.steps import Json

# Byte-level BPE (GPT-2's way); pieces with bytes for what none of them covers (SentencePiece's).
BYTES, PIECES, OTHER = "gpt2", "sentencepiece", "other"
# transformers' classes of byte-level BPE that have `vocab.json` and `merges.txt`.
_BYTE_CLASSES = frozenset({"GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer"})
_LISTS = ("decoders", "normalizers", "pretokenizers")


def of(folder: Path) -> str:
    """The kind of the tokenizer in ``folder``: ``tokenizer.json`` decides where there is one, then
    ``tokenizer.model``, then the class that ``tokenizer_config.json`` names."""
    if (folder / "tokenizer.json").is_file():
        return _of_file(json_files.read_object(folder / "tokenizer.json"))
    if (folder / "tokenizer.model").is_file():
        return PIECES
    path = folder / "tokenizer_config.json"
    settings = json_files.read_object(path) if path.is_file() else {}
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    return BYTES if name in _BYTE_CLASSES else OTHER


def normal_form(folder: Path) -> str:
    """The form of Unicode into which the tokenizer in ``folder`` brings texts first, "NFC" or
    another; "" if it takes them as they are, or has no ``tokenizer.json``."""
    path = folder / "tokenizer.json"
    whole = json_files.read_object(path) if path.is_file() else {}
    kinds = [*_types(whole.get("normalizer"))]
    return next((kind for kind in kinds if kind in ("NFC", "NFD", "NFKC", "NFKD")), "")


def cuts_digits(folder: Path) -> bool:
    """Whether the tokenizer in ``folder`` cuts digits off before it cuts text into words, as a step
    of its own (SmolLM2's); False without ``tokenizer.json``."""
    path = folder / "tokenizer.json"
    whole = json_files.read_object(path) if path.is_file() else {}
    return "Digits" in _types(whole.get("pre_tokenizer"))


def keeps_marks(folder: Path) -> bool:
    """Whether the tokenizer in ``folder`` takes characters that combine with letters for parts of
    words, as o200k's pattern says of itself; False without ``tokenizer.json``."""
    path = folder / "tokenizer.json"
    whole = json_files.read_object(path) if path.is_file() else {}
    return r"\p{M}" in repr(whole.get("pre_tokenizer"))


def _of_file(whole: Mapping[str, Json]) -> str:
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return OTHER
    if model.get("byte_fallback"):
        return PIECES
    kinds = [*_types(whole.get("decoder")), *_types(whole.get("pre_tokenizer"))]
    return BYTES if "ByteLevel" in kinds else OTHER


def _types(part: Json) -> Iterator[str]:
    """The types of a step of a ``tokenizer.json`` and of those in it, by one level."""
    steps = part if isinstance(part, dict) else {}
    inner = next((steps[key] for key in _LISTS if steps.get(key)), None)
    for step in [steps, *(inner if isinstance(inner, list) else [])]:
        if isinstance(step, dict):
            yield str(step.get("type"))

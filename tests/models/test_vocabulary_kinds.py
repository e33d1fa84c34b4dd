"""The kind of a vocabulary, by the tokenizer's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phipipe.hub import take
from phipipe.models import vocabulary_kinds

PIECES = {"model": {"type": "BPE", "byte_fallback": True}}
LEVEL = {"type": "ByteLevel"}
BYTES = {"model": {"type": "BPE", "byte_fallback": False}, "decoder": LEVEL}
NESTED = {
    "model": {"type": "BPE"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, LEVEL]},
}


def folder(path: Path, whole: Any = None, **files: Any) -> Path:
    if whole is not None:
        (path / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize(
    ("whole", "kind"),
    [
        (PIECES, "sentencepiece"),
        (BYTES, "gpt2"),
        (NESTED, "gpt2"),
        ({"model": {"type": "Unigram"}}, "other"),
        ({"model": {"type": "WordPiece"}, "decoder": LEVEL}, "other"),
        ({"model": {"type": "BPE"}}, "other"),
        ({"model": None}, "other"),
        ({}, "other"),
    ],
)
def test_tokenizer_json_decides(whole: Any, kind: str, tmp_path: Path) -> None:
    assert vocabulary_kinds.of(folder(tmp_path, whole, tokenizer__model="any")) == kind


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2TokenizerFast", "CodeGenTokenizer"])
def test_without_it_the_other_files_do(name: str, tmp_path: Path) -> None:
    assert vocabulary_kinds.of(tmp_path) == "other"
    settings = {"tokenizer_class": name}
    assert vocabulary_kinds.of(folder(tmp_path, tokenizer_config__json=settings)) == "gpt2"
    assert vocabulary_kinds.of(folder(tmp_path, tokenizer__model="any")) == "sentencepiece"


def test_the_embedded_models_are_pieces() -> None:
    tiny = take.BUILTIN_MODELS["tiny-phi3"]
    assert vocabulary_kinds.of(tiny) == "sentencepiece"
    assert vocabulary_kinds.normal_form(tiny) == ""
    assert not vocabulary_kinds.cuts_digits(tiny)


@pytest.mark.parametrize(
    ("normalizer", "form"),
    [
        ({"type": "NFC"}, "NFC"),
        ({"type": "Sequence", "normalizers": [{"type": "Replace"}, {"type": "NFKC"}]}, "NFKC"),
        ({"type": "Prepend", "prepend": "_"}, ""),
        (None, ""),
        ("NFC", ""),
    ],
)
def test_a_form_of_unicode_is_found(normalizer: Any, form: str, tmp_path: Path) -> None:
    assert vocabulary_kinds.normal_form(folder(tmp_path, {"normalizer": normalizer})) == form


@pytest.mark.parametrize(("cut", "found"), [("Digits", True), ("ByteLevel", False)])
def test_digits_that_are_cut_off_first_are_found(cut: str, found: bool, tmp_path: Path) -> None:
    parts = {"type": "Sequence", "pretokenizers": [{"type": cut}, {"type": "ByteLevel"}]}
    made = folder(tmp_path, {"pre_tokenizer": parts})
    assert vocabulary_kinds.cuts_digits(made) is found


@pytest.mark.parametrize(("pattern", "found"), [(r"[\p{L}\p{M}]+|\s+", True), (r"\p{L}+", False)])
def test_words_that_hold_combining_characters_are_found(
    pattern: str, found: bool, tmp_path: Path
) -> None:
    part = {"type": "Split", "pattern": {"Regex": pattern}}
    made = folder(tmp_path, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [part]}})
    assert vocabulary_kinds.keeps_marks(made) is found

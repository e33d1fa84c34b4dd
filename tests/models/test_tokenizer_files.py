"""Tokenizer files that contradict each other are refused before anything is converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phipipe.errors import SourceError
from phipipe.hub import take, taking
from phipipe.models import checkpoints, sentencepiece_file, tokenizer_files


def change(folder: Path, name: str, edit: Callable[[Any], None]) -> None:
    value = json.loads((folder / name).read_text("utf-8"))
    edit(value)
    (folder / name).write_text(json.dumps(value), "utf-8")


def another_id(settings: Any) -> None:
    number, entry = settings["added_tokens_decoder"].popitem()
    settings["added_tokens_decoder"][str(int(number) + 1)] = entry


def another_name(settings: Any) -> None:
    next(iter(settings["added_tokens_decoder"].values()))["content"] = "<|other|>"


def test_the_embedded_models_files_agree(checkpoint: Path) -> None:
    tokenizer_files.check(checkpoint, checkpoints.read(checkpoint).vocab_size)


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("tokenizer_config.json", another_id, "in `tokenizer.json` and"),
        ("tokenizer_config.json", another_name, "`<|other|>` in `tokenizer_config.json`"),
        ("added_tokens.json", lambda t: t.update(dict.fromkeys(t, 7)), "in `added_tokens.json`"),
        (
            "tokenizer.json",
            lambda t: t["model"]["vocab"].update(more=99999),
            "belongs to another model",
        ),
        (
            "tokenizer.json",
            lambda t: t["added_tokens"][0].pop("id"),
            "`tokenizer.json` has a token without text or number",
        ),
        ("tokenizer.json", lambda t: t.update(model=None), "damaged"),
    ],
)
def test_contradictions_name_both_files(
    checkpoint: Path, tmp_path: Path, file: str, edit: Callable[[Any], None], words: str
) -> None:
    change(checkpoint, file, edit)
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError) as caught:
        taking.take(
            {"files": checkpoint}, tmp_path / "out", {"files": checkpoints.files(checkpoint)}
        )
    assert words in caught.value.message
    assert caught.value.hint


def test_a_list_of_pieces_is_read_as_ids(checkpoint: Path) -> None:
    def as_unigram(whole: Any) -> None:
        vocabulary = sorted(whole["model"]["vocab"].items(), key=lambda pair: int(pair[1]))
        whole["model"] = {"type": "Unigram", "vocab": [[token, 0.0] for token, _ in vocabulary]}

    change(checkpoint, "tokenizer.json", as_unigram)
    tokenizer_files.check(checkpoint, checkpoints.read(checkpoint).vocab_size)


def test_pieces_alone_are_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    shutil.copyfile(take.BUILTIN_MODELS["tiny-phi3"] / path.name, path)
    tokenizer_files.check(tmp_path, len(sentencepiece_file.pieces(path)))
    with pytest.raises(SourceError, match="belongs to another model"):
        tokenizer_files.check(tmp_path, 10)
    path.write_bytes(bytes(100))
    with pytest.raises(SourceError, match="holds no pieces"):
        tokenizer_files.check(tmp_path, 10)


@pytest.mark.parametrize(
    ("words", "merges", "message"),
    [
        (b'{"a": 1}', None, "merges.txt"),
        (b'{"a": 1}', b"\xff", "not UTF-8"),
        (b"[]", b"a b", "JSON object"),
        (b'{"a": 11}', b"a b", "belongs to another model"),
        (b'{"a": "b"}', b"a b", "without text or number"),
    ],
)
def test_words_and_merges_alone_are_the_tokenizer(
    tmp_path: Path, words: bytes, merges: bytes | None, message: str
) -> None:
    (tmp_path / "vocab.json").write_bytes(words)
    if merges is not None:
        (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(SourceError, match=message):
        tokenizer_files.check(tmp_path, 10)

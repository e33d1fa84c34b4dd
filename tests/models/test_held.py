"""What was found of a folder's files holds for every folder with the same content, and for no
other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import checkpoints, held

TINY = take.BUILTIN_MODELS["tiny-phi3"]
NAMES = ("a", "b")
CONTENTS = st.dictionaries(st.sampled_from(("a", "b", "other")), st.binary(max_size=20))


def filled(folder: Path, contents: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@given(one=CONTENTS, other=CONTENTS)
def test_folders_are_equal_by_the_named_files_alone(
    tmp_path: Path, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    first = held.by(NAMES, filled(tmp_path / "one", one))
    second = held.by(NAMES, filled(tmp_path / "two", other))
    alike = {n: one[n] for n in one if n in NAMES} == {n: other[n] for n in other if n in NAMES}
    assert (first == second) == alike
    assert (len({first, second}) == 1) == alike


def test_what_is_too_large_to_be_read_is_like_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_BYTES", 3)
    folders = [filled(tmp_path / name, {"a": b"long"}) for name in ("one", "two")]
    first, second = (held.by(NAMES, folder) for folder in folders)
    assert first != second


def test_a_tokenizer_that_was_changed_is_looked_at_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    assert checkpoints.read(folder).tokenizer == checkpoints.read(TINY).tokenizer
    (folder / "added_tokens.json").write_text('{"<|end|>": 3, "<|new|>": 99999999}', "utf-8")
    with pytest.raises(SourceError, match="tokenizer"):
        checkpoints.read(folder)

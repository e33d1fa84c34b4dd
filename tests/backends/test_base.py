"""The copy of a checkpoint that converters work on: whole, patched, and without a second set of
weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from phipipe.models.staging import staged


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A stored checkpoint: its files are read-only."""
    folder = tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text('{"use_cache": false, "head_dim": 2}', "utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_bytes(b"{}")
    for path in folder.glob("*.*"):
        path.chmod(0o444)
    return folder


def test_a_patch_reaches_the_copy_alone(source: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.glob("*.*")}
    made = staged(source, {"use_cache": True}, tmp_path / "made")
    assert json.loads((made / "config.json").read_text("utf-8")) == {
        "use_cache": True,
        "head_dim": 2,
    }
    assert sorted(path.name for path in made.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert {path.name: path.read_bytes() for path in source.glob("*.*")} == before


def test_nothing_is_a_symbolic_link(source: Path, tmp_path: Path) -> None:
    made = staged(source, {}, tmp_path / "made")
    assert not any(path.is_symlink() for path in made.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="weights are copied on Windows")
def test_weights_take_no_room_and_other_files_are_copies(source: Path, tmp_path: Path) -> None:
    made = staged(source, {}, tmp_path / "made")
    assert (made / "model.safetensors").samefile(source / "model.safetensors")
    assert not (made / "tokenizer.json").samefile(source / "tokenizer.json")


@pytest.mark.skipif(os.name == "nt", reason="weights are copied on Windows")
def test_removing_the_copy_leaves_the_weights_as_they_were(source: Path, tmp_path: Path) -> None:
    made = staged(source, {}, tmp_path / "made")
    (made / "model.safetensors").unlink()
    kept = source / "model.safetensors"
    assert (kept.read_bytes(), kept.stat().st_nlink, kept.stat().st_mode & 0o777) == (
        b"weights",
        1,
        0o444,
    )


def test_weights_are_copied_where_there_are_no_hard_links(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    made = staged(source, {}, tmp_path / "made")
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert not (made / "model.safetensors").samefile(source / "model.safetensors")

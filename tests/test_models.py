"""A checkpoint is vetted before any toolchain sees it."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe import hub, models
from phipipe.errors import SourceError

TINY = hub.BUILTIN_MODELS["tiny-phi3"]


def edit(folder: Path, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        models.read(folder)
    assert caught.value.exit_code == 8
    return caught.value.message


def test_the_embedded_model_is_read_from_its_headers_alone() -> None:
    found = models.read(TINY)
    assert (found.architecture, found.model_type) == ("Phi3ForCausalLM", "phi3")
    assert found.weight_bytes == found.parameters * 2
    assert found.kv_heads < found.heads
    assert not found.resaved
    assert not found.longrope


def test_only_files_a_toolchain_may_see_are_taken(checkpoint: Path) -> None:
    for name in ("evil.py", "weights.bin", "notes.txt", "lib.so"):
        (checkpoint / name).write_bytes(b"x")
    assert not {"evil.py", "weights.bin", "notes.txt", "lib.so"} & set(models.files(checkpoint))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"} <= set(models.files(checkpoint))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refusal(tmp_path / "nothing")


def test_a_checkpoint_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no weights" in refusal(checkpoint)


def test_a_checkpoint_with_only_pickles_is_refused_with_the_reason(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "pickles" in refusal(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5_000, -1])
def test_a_truncated_safetensors_file_is_refused(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors" in refusal(checkpoint)


def test_trailing_bytes_after_the_weights_are_refused(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    assert "cut short or padded" in refusal(checkpoint)


def test_a_header_with_overlapping_tensors_is_refused(checkpoint: Path) -> None:
    header = json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("a", "b")}).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert "corrupt" in refusal(checkpoint)


def test_an_index_that_names_a_missing_shard_is_refused(checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert "model-00002-of-00002.safetensors" in refusal(checkpoint)


def test_auto_map_with_code_beside_it_is_refused(checkpoint: Path) -> None:
    edit(checkpoint, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (checkpoint / "modeling_evil.py").write_text("raise SystemExit", "utf-8")
    assert "auto_map" in refusal(checkpoint)


def test_auto_map_without_code_is_harmless(checkpoint: Path) -> None:
    edit(checkpoint, auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    assert models.read(checkpoint).architecture == "Phi3ForCausalLM"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("key", sorted(models.CODE_KEYS))
def test_every_known_code_hook_is_refused_wherever_it_hides(checkpoint: Path, key: str, name: str) -> None:
    edit(checkpoint, name, nested=[{"deep": {key: "somewhere"}}])
    assert key in refusal(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", '{"architectures": []}', '{"architectures": 3}'])
def test_a_broken_config_is_a_clear_refusal(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, "utf-8")
    assert "config.json" in refusal(checkpoint)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in models.TOKENIZERS:
        (checkpoint / name).unlink(missing_ok=True)
    assert "tokenizer" in refusal(checkpoint)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_header_whatever_makes_the_reader_crash(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with contextlib.suppress(SourceError):  # any other exception fails the test
        assert models._tensors(path) == []

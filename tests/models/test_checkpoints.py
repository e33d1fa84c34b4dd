"""A checkpoint is vetted before any toolchain sees it."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import checkpoints, code_keys, family, longrope, weights

TINY = take.BUILTIN_MODELS["tiny-phi3"]


def edit(folder: Path, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        checkpoints.read(folder)
    assert caught.value.exit_code == 8
    return caught.value.message


def test_the_embedded_model_is_read_from_its_headers_alone() -> None:
    found = checkpoints.read(TINY)
    assert (found.architecture, found.model_type) == ("Phi3ForCausalLM", "phi3")
    assert found.weight_bytes == found.parameters * 2
    assert found.kv_heads < found.heads
    assert not found.resaved
    assert not found.longrope


LISTS = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "longrope", **LISTS}},
        {"rope_scaling": {"type": "su", **LISTS}},
        {"rope_scaling": {"type": "yarn", **LISTS}},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                **LISTS,
            }
        },
    ],
)
def test_longrope_is_read_in_every_spelling(checkpoint: Path, rope: dict[str, object]) -> None:
    edit(checkpoint, max_position_embeddings=8192, original_max_position_embeddings=512, **rope)
    found = checkpoints.read(checkpoint)
    assert found.longrope
    assert found.rope_scaling == {"type": "longrope", **LISTS}
    assert (found.original_context_length, found.context_length) == (512, 8192)
    assert found.resaved == ("rope_parameters" in rope)


def test_other_scalings_are_not_longrope(checkpoint: Path) -> None:
    for scaling in ({"type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}, None):
        edit(checkpoint, rope_scaling=scaling)
        assert not checkpoints.read(checkpoint).longrope
        assert longrope.respelled(checkpoints.read(checkpoint).config) == {}


def test_settings_that_moved_are_found(checkpoint: Path) -> None:
    half = {name: factors[:16] for name, factors in LISTS.items()}
    rope = {"rope_type": "longrope", "rope_theta": 2e5, "partial_rotary_factor": 0.5, **half}
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    for key in ("rope_theta", "rope_scaling", "original_max_position_embeddings"):
        del config[key]
    config["rope_parameters"] = {**rope, "original_max_position_embeddings": 1024}
    (checkpoint / "config.json").write_text(json.dumps(config), "utf-8")
    found = checkpoints.read(checkpoint)
    assert (found.rope_theta, found.partial_rotary_factor, found.original_context_length) == (
        2e5,
        0.5,
        1024,
    )


# Billions of parameters, of those that a token passes through; on the models' pages on the hub.
SIZES = {
    "Phi-1.5": (1.42, 1.42),
    "Phi-2": (2.78, 2.78),
    "Phi-3-mini-4k": (3.82, 3.82),
    "Phi-3.5-mini": (3.82, 3.82),
    "Phi-3-medium-4k": (13.96, 13.96),
    "Phi-4": (14.66, 14.66),
    "Phi-4-mini": (3.84, 3.84),
    "Phi-3.5-MoE": (41.87, 6.64),
    "Phi-mini-MoE": (7.65, 2.36),
    "Phi-tiny-MoE": (3.75, 1.29),
}


@pytest.mark.parametrize("member", family.MEMBERS, ids=lambda member: member.name)
def test_members_are_known_by_their_configs_alone(member: family.Member) -> None:
    found = checkpoints.of_config(member.config, member.tokenizer)
    assert family.of(member.config) is member
    assert found.parts == PARTS.get(member.name, ())
    if member.name in SIZES:
        sizes = found.parameters / 1e9, found.active_parameters / 1e9
        assert sizes == pytest.approx(SIZES[member.name], abs=0.006)


PARTS = {
    "Phi-3.5-vision": ("vision",),
    "Phi-4-multimodal": ("vision", "audio"),
    "Phi-4-reasoning-vision": ("vision",),
}


def test_a_model_of_another_family_is_no_member(checkpoint: Path) -> None:
    assert family.of(checkpoints.read(checkpoint).config) is None, (
        "the embedded model has sizes of its own"
    )
    assert family.of({}) is None


def test_which_tokenizer_llamacpp_would_read(checkpoint: Path) -> None:
    assert checkpoints.read(checkpoint).tokenizer == "sentencepiece"
    (checkpoint / "tokenizer.model").unlink()
    assert checkpoints.read(checkpoint).tokenizer == "sentencepiece", "its pieces are in the JSON"
    edit(checkpoint, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert checkpoints.read(checkpoint).tokenizer == "sentencepiece", "tokenizer.json decides"


def test_a_member_that_exists_as_code_only_is_read_without_its_tokenizer(checkpoint: Path) -> None:
    """The plan then says why it is refused, rather than that a file is missing."""
    for name in checkpoints.TOKENIZERS:
        (checkpoint / name).unlink(missing_ok=True)
    edit(checkpoint, architectures=["Phi3SmallForCausalLM"], ff_intermediate_size=1024)
    found = checkpoints.read(checkpoint)
    assert (found.architecture, found.intermediate_size) == ("Phi3SmallForCausalLM", 1024)


def test_only_files_a_toolchain_may_see_are_taken(checkpoint: Path) -> None:
    for name in ("evil.py", "weights.bin", "notes.txt", "lib.so"):
        (checkpoint / name).write_bytes(b"x")
    assert not {"evil.py", "weights.bin", "notes.txt", "lib.so"} & set(
        checkpoints.files(checkpoint)
    )
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"} <= set(
        checkpoints.files(checkpoint)
    )


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
    header = json.dumps(
        {n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("a", "b")}
    ).encode()
    (checkpoint / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(16)
    )
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
    assert checkpoints.read(checkpoint).architecture == "Phi3ForCausalLM"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("key", sorted(code_keys.CODE_KEYS))
def test_every_known_code_hook_is_refused_wherever_it_hides(
    checkpoint: Path, key: str, name: str
) -> None:
    edit(checkpoint, name, nested=[{"deep": {key: "somewhere"}}])
    assert key in refusal(checkpoint)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\0", '{"architectures": []}', '{"architectures": 3}']
)
def test_a_broken_config_is_a_clear_refusal(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, "utf-8")
    assert "config.json" in refusal(checkpoint)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in checkpoints.TOKENIZERS:
        (checkpoint / name).unlink(missing_ok=True)
    assert "tokenizer" in refusal(checkpoint)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_header_whatever_makes_the_reader_crash(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with contextlib.suppress(SourceError):  # any other exception fails the test
        assert weights.tensors(path) == []


@pytest.mark.parametrize("empty", [None, {}])
def test_a_key_of_quantization_that_holds_nothing_is_named_before_tools_fail_on_it(
    checkpoint: Path, empty: object
) -> None:
    edit(checkpoint, quantization_config=empty)
    assert "`quantization_config` with nothing in it" in refusal(checkpoint)

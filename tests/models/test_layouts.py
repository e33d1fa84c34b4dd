"""Any change to a checkpoint's tensors, files or settings that makes it another model is refused by
name, for every architecture with a layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import hostile_checkpoints as hostile
from testing import small_checkpoints
from testing.family_builds import BUILDS, plan_of
from testing.hostile_checkpoints import INDEX, WEIGHTS
from testing.small_checkpoints import ARCHITECTURES

from phipipe.errors import SourceError, TargetError
from phipipe.models import checkpoints, layouts, likeness, plain_values
from phipipe.models.weights import DTYPE_BITS

SHARDS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
COMMON = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="session")
def smalls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("smalls")
    for name in ARCHITECTURES:
        small_checkpoints.write(root / name, name)
    return root


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        checkpoints.read(folder)
    assert caught.value.exit_code == 8
    assert caught.value.hint, "what to do next"
    return caught.value.message


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_small_checkpoints_are_fit(smalls: Path, name: str) -> None:
    found = checkpoints.read(smalls / name)
    assert (found.architecture, found.remarks, found.like) == (name, (), ())


def header_of(name: str) -> dict[str, Any]:
    return hostile.header(small_checkpoints.shapes_of(small_checkpoints.config_of(name)))


def again(shapes: dict[str, list[int]]) -> dict[str, Any]:
    return hostile.header(shapes)


@COMMON
@given(st.sampled_from(ARCHITECTURES), st.data())
def test_any_tensor_dropped_renamed_added_or_reshaped_is_named(
    smalls: Path, name: str, data: st.DataObject
) -> None:
    shapes = small_checkpoints.shapes_of(small_checkpoints.config_of(name))
    tensor = data.draw(st.sampled_from(sorted(shapes)))
    match data.draw(st.sampled_from(["dropped", "renamed", "added", "reshaped", "turned"])):
        case "dropped":
            del shapes[tensor]
        case "renamed":
            shapes[f"{tensor}s"] = shapes.pop(tensor)
        case "added":
            shapes[tensor.replace(".weight", ".extra")] = [8]
        case "reshaped":
            shapes[tensor] = [shapes[tensor][0] + 1, *shapes[tensor][1:]]
        case _:
            shapes[tensor] = [1, *shapes[tensor]]
    folder = smalls / name
    kept = (folder / WEIGHTS).read_bytes()
    small_checkpoints.save(folder / WEIGHTS, again(shapes))
    stem = tensor.rpartition(".")[0].rpartition(".")[2]
    message = refusal(folder)
    (folder / WEIGHTS).write_bytes(kept)
    assert stem in message or "head" in message


@COMMON
@given(
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(["I8", "U8", "I32", "F8_E4M3", "F64", "BOOL", "F4"]),
    st.data(),
)
def test_any_tensor_of_another_dtype_is_named(
    smalls: Path, name: str, dtype: str, data: st.DataObject
) -> None:
    shapes = small_checkpoints.shapes_of(small_checkpoints.config_of(name))
    tensor = data.draw(st.sampled_from(sorted(shapes)))
    head, end = header_of(name), 0
    for one, told in head.items():
        if one == "__metadata__":
            continue
        told["dtype"] = dtype if one == tensor else told["dtype"]
        count = 1
        for length in told["shape"]:
            count *= length
        size = count * DTYPE_BITS[told["dtype"]] // 8
        told["data_offsets"], end = [end, end + size], end + size
    folder = smalls / name
    kept = (folder / WEIGHTS).read_bytes()
    small_checkpoints.save(folder / WEIGHTS, head)
    message = refusal(folder)
    (folder / WEIGHTS).write_bytes(kept)
    assert tensor in message
    assert dtype in message


def save_shards(folder: Path, name: str, *, indexed: bool = True, cut: int | None = None) -> None:
    """The tensors of ``name`` in two files."""
    shapes = small_checkpoints.shapes_of(small_checkpoints.config_of(name))
    names = sorted(shapes)
    cut = len(names) // 2 if cut is None else cut
    places = {one: SHARDS[place >= cut] for place, one in enumerate(names)}
    for file in SHARDS:
        part = {one: shapes[one] for one in names if places[one] == file}
        small_checkpoints.save(folder / file, hostile.header(part))
    if indexed:
        (folder / INDEX).write_text(json.dumps({"weight_map": places}), "utf-8")


@COMMON
@given(st.sampled_from(ARCHITECTURES), st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_of_two_saves_in_one_folder_are_one_model_or_refused(
    smalls: Path, name: str, there: list[bool]
) -> None:
    """``there``: the whole file, either shard, the index. What is read is one whole save, and the
    rest is named."""
    folder = smalls / "two"
    shutil.copytree(smalls / name, folder)
    try:
        save_shards(folder, name)
        files = (WEIGHTS, *SHARDS, INDEX)
        for file, kept in zip(files, there, strict=True):
            if not kept:
                (folder / file).unlink()
        whole, first, second, index = there
        if index and first and second and not whole:
            assert checkpoints.read(folder).remarks == ()
        elif whole and not index:
            found = checkpoints.read(folder)
            assert [remark.rule for remark in found.remarks] == ["W01"] * (first or second)
            assert set(SHARDS).isdisjoint(checkpoints.files(folder))
        else:
            refusal(folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tensor_in_two_files_is_named(smalls: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "doubled"
    shutil.copytree(smalls / name, folder)
    (folder / WEIGHTS).unlink()
    save_shards(folder, name)
    shapes = small_checkpoints.shapes_of(small_checkpoints.config_of(name))
    last = sorted(shapes)[-1]
    half = {one: shapes[one] for one in [*sorted(shapes)[: len(shapes) // 2], last]}
    small_checkpoints.save(folder / SHARDS[0], hostile.header(half))
    assert last in refusal(folder)


PARTS: dict[str, Any] = {
    "logit_scale": 0.0625,
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015625,
    "clip_qkv": 8.0,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "hidden_act": "relu2",
    "use_parallel_residual": True,
    "alibi": True,
    "kv_lora_rank": 512,
    "use_bidirectional_attention": True,
    "is_causal": False,
    "num_kv_shared_layers": 2,
    "rope_interleaved": True,
}
NOT_THERE = {
    "LlamaForCausalLM": {
        "no_rope_layers": [1, 0],
        "sliding_window": 64,
        "qk_layernorm": True,
        "partial_rotary_factor": 0.5,
        "layer_types": ["full_attention", "sliding_attention"],
        "num_local_experts": 8,
    },
    "Phi3ForCausalLM": {"attention_bias": True, "mlp_bias": True, "num_local_experts": 8},
    "MistralForCausalLM": {"attention_bias": True, "partial_rotary_factor": 0.5},
    "Qwen2ForCausalLM": {"attention_bias": True, "use_mrope": True},
    "PhiForCausalLM": {"sliding_window": 64, "hidden_act": "silu"},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_that_an_architecture_does_not_have_are_named(tmp_path: Path, name: str) -> None:
    for key, value in {**PARTS, **NOT_THERE.get(name, {})}.items():
        own = layouts.LAYOUTS[name].model_type in plain_values._KEYS.get(key, ((), ()))[1]
        if own or (key == "use_parallel_residual" and name == "PhiForCausalLM"):
            continue
        folder = small_checkpoints.write(tmp_path / key, name)
        path = folder / "config.json"
        told = json.loads(path.read_text("utf-8")) | {key: value}
        path.write_text(json.dumps(told), "utf-8")
        assert key in refusal(folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_that_mean_without_are_no_matter(tmp_path: Path, name: str) -> None:
    plain = {"logit_scale": 1.0, "clip_qkv": None, "residual_multiplier": 1, "alibi": False}
    plain |= {"attn_logit_softcapping": None, "use_mrope": False, "is_causal": True}
    found = checkpoints.read(small_checkpoints.write(tmp_path / "small", name, **plain))
    assert found.remarks == ()


UNKNOWN = {  # architecture → the tensors of which known one it has
    "StableLmForCausalLM": "LlamaForCausalLM",
    "OlmoForCausalLM": "LlamaForCausalLM",
    "SomeQwen3ForCausalLM": "Qwen3ForCausalLM",
    "TinyPhiForCausalLM": "Phi3ForCausalLM",
}


@pytest.mark.parametrize("backend", BUILDS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_architecture_is_refused_with_those_that_come_closest(
    tmp_path: Path, name: str, backend: str
) -> None:
    folder = small_checkpoints.write(tmp_path / "small", UNKNOWN[name])
    path = folder / "config.json"
    told = json.loads(path.read_text("utf-8"))
    told |= {"architectures": [name], "model_type": name.removesuffix("ForCausalLM").lower()}
    path.write_text(json.dumps(told), "utf-8")
    with pytest.raises(TargetError, match=r"\[M23\]") as refused:
        plan_of(folder, backend, "short")
    assert refused.value.exit_code == 3
    assert UNKNOWN[name] in refused.value.message
    assert name in refused.value.message


def test_what_is_like_nothing_says_so() -> None:
    assert likeness.closest("RwkvForCausalLM", "rwkv", ["rwkv.blocks.0.att.key.weight"]) == ()

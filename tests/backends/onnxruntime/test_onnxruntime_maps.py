"""ONNX Runtime: widths of single matrices, and weights that were learned for all runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.drive import facts_of, section
from testing.plans import planned
from testing.shapes import phi3

from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.onnxruntime import Options, schemes
from phipipe.backends.onnxruntime.schemes import Linear, matrix_of
from phipipe.backends.widths import Width
from phipipe.errors import StepFailed, TargetError
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "map_driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("onnxruntime"), DRIVER, tmp_path_factory.mktemp("onnx-maps"))


def plan(chosen: str, *more: str) -> Plan:
    return planned("backend=onnxruntime", f"quantize={{map: {{{chosen}}}}}", *more)


def step(found: Plan, name: str) -> Any:
    return next(one for one in found.steps if one.name == name)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("lm_head: {bits: 6}", "no 6 bits, but 4, 8 and 16"),
        ("lm_head: {bits: 8, group_size: -1}", "no groups of -1 at 8 bits"),
        ("lm_head: Q6_K", "no type `Q6_K`"),
        ("layers.*.mlp.donw_proj: {bits: 8}", "did you mean `layers.*.mlp.down_proj`"),
        ("lm_*: {bits: 4}, lm_head: {bits: 8}", "decides nothing"),
    ],
)
def test_a_map_that_cannot_be_stored_is_refused_by_the_plan(chosen: str, words: str) -> None:
    with pytest.raises(TargetError) as refused:
        plan(chosen)
    assert words in refused.value.message


def test_a_map_is_part_of_the_quantize_step_and_only_where_there_is_one() -> None:
    without = planned("backend=onnxruntime")
    mapped = plan("lm_head: {bits: 8}, '*.o_proj': {bits: 8, group_size: 64}")
    assert "widths" not in step(without, "quantize").params
    found = step(mapped, "quantize").params["widths"]
    assert found["lm_head"] == {"bits": 8, "group_size": 32}
    assert found["layers.0.self_attn.o_proj"] == {"bits": 8, "group_size": 64}
    assert step(mapped, "quantize").output_bytes > step(without, "quantize").output_bytes
    assert "precision map" in str(step(mapped, "package").params)


def test_learned_weights_come_before_they_are_stored() -> None:
    found = planned("backend=onnxruntime", "weights={learn: round}")
    names = [one.name for one in found.steps]
    assert names.index("weights") < names.index("quantize")
    quantize = step(found, "quantize")
    assert quantize.needs["weights"] == "weights"
    assert quantize.params["widths"]["lm_head"] == {"bits": 8, "group_size": 32}
    assert quantize.params["widths"]["layers.0.mlp.down_proj"] == {"bits": 4, "group_size": 32}


def test_a_preset_is_planned_as_the_map_that_says_the_same() -> None:
    told = "layers.0.mlp.down_proj: {bits: 8}, layers.2.mlp.down_proj: {bits: 8}"
    by_hand = plan(f"{told}, lm_head: {{bits: 8}}")
    preset = planned("backend=onnxruntime", "quantize={mixed: down}")
    assert step(preset, "quantize") == step(by_hand, "quantize")


def widths_of(mixed: str, shape: Checkpoint, api: str = "cpu", **more: Any) -> dict[str, Any]:
    unit: Any = SimpleNamespace(api=api)
    job = Job(SimpleNamespace(precision="int4"), Options(mixed=mixed, **more), shape, {}, unit)  # type: ignore[arg-type]
    return {name: str(width) for name, width in schemes.widths_of(job).items()}


def test_presets_name_the_matrices_that_the_graph_has() -> None:
    shape, wide = phi3(layers=1), "8 bits in groups of 32"
    joined = {"lm_head", "layers.0.mlp.down_proj", "layers.0.self_attn.qkv_proj"}
    assert widths_of("layers", shape) == dict.fromkeys(joined, wide)
    assert "layers.0.self_attn.v_proj" in widths_of("layers", shape, "directml")
    assert "layers.0.mlp.down_proj" not in widths_of("layers", phi3(layers=1, model_type="phi"))
    assert "lm_head" not in widths_of("down", shape, exclude=["/lm_head/*"])


def test_the_map_wins_over_the_preset_pattern_by_pattern() -> None:
    found = plan("'*.down_proj': {bits: 4}, lm_head: {bits: 16}", "quantize.mixed=layers")
    told = step(found, "quantize").params["widths"]
    bits = {name: one["bits"] for name, one in told.items()}
    assert (bits["lm_head"], bits["layers.0.mlp.down_proj"]) == (16, 4)
    assert bits["layers.0.self_attn.qkv_proj"] == 8
    assert "layers.1.self_attn.qkv_proj" not in bits


@given(
    st.dictionaries(
        st.sampled_from(["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"]),
        st.sampled_from([4, 8, 16]),
    )
)
def test_a_joined_matrix_has_one_width(chosen: dict[str, int]) -> None:
    mapped = {f"layers.0.self_attn.{name}": Width(bits=bits) for name, bits in chosen.items()}
    parts = {chosen.get(f"{name}_proj") for name in "qkv"}
    name = "layers.0.self_attn.qkv_proj"
    if "qkv_proj" not in chosen and len(parts) > 1:
        with pytest.raises(StepFailed, match="several widths"):
            widths.of(name, mapped)
        return
    expected = chosen.get("qkv_proj", parts.pop())
    found = widths.of(name, mapped)
    assert found == (Width(bits=expected) if expected else None)
    assert widths.from_params(widths.to_params(mapped)) == mapped


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("/model/layers.3/attn/qkv_proj/MatMul", "layers.3.self_attn.qkv_proj"),
        ("/model/layers.0/mlp/fc2/MatMul", "layers.0.mlp.down_proj"),
        ("/lm_head/MatMul", "lm_head"),
    ],
)
def test_nodes_have_the_names_of_their_matrices(node: str, name: str) -> None:
    assert matrix_of(node) == name


def test_a_map_wins_over_all_other_options() -> None:
    names = ("/model/layers.0/mlp/down_proj/MatMul", "/lm_head/MatMul")
    wanted = [Linear(name=name, weight=name, k=128, n=256) for name in names]
    options = Options(exclude=["*down_proj*"])
    told = {"lm_head": Width(bits=16), "layers.0.mlp.down_proj": Width(bits=8, group_size=64)}
    found = schemes.schemes_of(wanted, options, 4, told)
    assert {name: (one.bits, one.block_size) for name, one in found.items()} == {names[0]: (8, 64)}


PRESETS = ["none", "head", "down", "layers", "exclude", "excluded", "k_quant", "embeddings"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_and_the_map_that_says_the_same_give_the_same_files(
    facts: dict[str, Any], preset: str
) -> None:
    assert section(facts, "presets")[preset] == []


def test_widths_stand_side_by_side(facts: dict[str, Any]) -> None:
    found = section(facts, "mixture")
    assert found["linears"] == {"4": 22, "8": 3, "32": 1}
    assert found["blocks"] == {
        "/model/embed_tokens/Gather_Q8": [8, 64],
        "/model/layers.1/attn/o_proj/MatMul_Q4": [4, 16],
        "/model/layers.2/mlp/gate_proj/MatMul_Q8": [8, 256],
        "/model/layers.2/mlp/up_proj/MatMul_Q8": [8, 256],
        "/lm_head/MatMul_Q8": [8, 128],
    }
    assert max(found["kld"]["plain"], found["kld"]["asymmetric"]) < found["kld"]["alone"]


def test_a_matrix_that_the_graph_lacks_or_holds_joined_is_told(facts: dict[str, Any]) -> None:
    assert "no matrix `layers.9.mlp.down_proj`" in section(facts, "mixture")["lost"][1]
    assert "is one matrix here" in section(facts, "mixture")["apart"][1]


@pytest.mark.parametrize("case", ["tiny", "tiny 64", "tiny 128", "tied", "tied 4", "llama"])
def test_learned_weights_are_computed_as_they_are(facts: dict[str, Any], case: str) -> None:
    found = section(facts, "learned")[case]
    assert found["difference"] < 1e-5 * found["size"]
    assert found["kld"] < 1e-9


def test_floats_and_codes_are_where_they_were_asked_for(facts: dict[str, Any]) -> None:
    found = section(facts, "learned")
    assert found["tiny"]["linears"] == {"4": 25, "8": 1}
    assert found["tiny 128"]["linears"] == {"4": 24, "8": 1, "32": 1}
    assert found["tied 4"]["linears"] == {"4": 26}


def test_graphs_of_other_kinds_hold_the_same_weights(facts: dict[str, Any]) -> None:
    found = section(facts, "elsewhere")
    assert found["cuda"] == {"4": 25, "8": 1}
    assert found["dml"] == {"4": 35, "8": 1}  # queries, keys and values apart
    assert max(found["cuda kld"], found["dml kld"]) < 1e-4
    assert found["linked"] == [True, True]


def test_other_weights_than_the_learned_ones_are_told(facts: dict[str, Any]) -> None:
    found = section(facts, "refused")
    assert found["same"][0] == "nothing raised"
    assert "does not hold the learned weights" in found["other"][1]
    assert "8 bits in groups of 32" in found["width"][1]

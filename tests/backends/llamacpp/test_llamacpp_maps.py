"""llama.cpp: types of single matrices, and weights that were learned for all runtimes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.drive import drive, read, section
from testing.plans import planned

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Matrix
from phipipe.backends.llamacpp import stored
from phipipe.backends.llamacpp.blocks import blocks, permuted
from phipipe.backends.llamacpp.names import tensor_of
from phipipe.errors import StepFailed, TargetError
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "map_driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gguf-maps")
    drive(python_of("torch"), DRIVER, folder, "torch")
    section(read(folder / "torch.json"), "made")
    drive(python_of("llamacpp"), DRIVER, folder, "llamacpp")
    return read(folder / "llamacpp.json")


def plan(options: str, *more: str) -> Plan:
    return planned("backend=llamacpp", f"quantize={{{options}}}", *more)


def step(found: Plan, name: str) -> Any:
    return next(one for one in found.steps if one.name == name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("map: {lm_head: {bits: 6}}", "no 6 bits, but 4, 5, 8 and 16"),
        ("map: {lm_head: {bits: 8, group_size: 64}}", "no groups of 64 at 8 bits, but 32"),
        ("map: {lm_head: Q6}", "no type `Q6`, but `F32`"),
        ("map: {'*.donw_proj': Q6_K}", "matches no matrix"),
        ("map: {'lm_*': Q4_0, lm_head: Q8_0}", "decides nothing"),
        ("map: {lm_head: IQ2_XS}", "without an importance matrix"),
    ],
)
def test_a_map_that_cannot_be_stored_is_refused_by_the_plan(options: str, words: str) -> None:
    with pytest.raises(TargetError) as refused:
        plan(options)
    assert words in refused.value.message


@pytest.mark.parametrize(
    "options", ["imatrix: true", "type: Q4_K_M", "output_type: Q6_K", "tensors: {ffn: Q6_K}"]
)
def test_weights_that_are_learned_are_not_rounded_again(options: str) -> None:
    with pytest.raises(TargetError, match="weights are learned, and"):
        plan(options, "weights={learn: round}")


def test_a_map_is_part_of_the_quantize_step_and_only_where_there_is_one() -> None:
    without = plan("type: Q4_0")
    mapped = plan(
        "type: Q4_0, map: {lm_head: Q6_K, '*.o_proj': {bits: 8}, embed_tokens: {bits: 16}}"
    )
    assert "widths" not in step(without, "quantize").params
    found = step(mapped, "quantize").params["widths"]
    assert found["lm_head"] == "Q6_K"
    assert found["layers.0.self_attn.o_proj"] == "Q8_0"
    assert found["embed_tokens"] in ("F16", "BF16", "F32")
    assert step(mapped, "quantize").output_bytes > step(without, "quantize").output_bytes
    assert "Q4_0, precision map" in str(step(mapped, "package").params)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_learned_weights_come_before_they_are_stored(size: int) -> None:
    more = f"weights={{learn: round, group_size: {size}}}"
    found = plan("map: {lm_head: {bits: 4}}", more)
    names = [one.name for one in found.steps]
    assert names.index("weights") < names.index("quantize")
    quantize = step(found, "quantize")
    assert quantize.needs == {"outline": "outline", "source": "source", "weights": "weights"}
    assert quantize.params["type"] == "Q4_0"
    assert quantize.params["widths"]["embed_tokens"] == "Q8_0"
    assert quantize.params["widths"]["lm_head"] == "Q4_0"
    assert "learned" in str(step(found, "package").params) or "rounded once" in str(
        step(found, "package").params
    )


@pytest.mark.parametrize(
    ("matrix", "tensor"),
    [
        ("layers.3.self_attn.qkv_proj", "blk.3.attn_qkv.weight"),
        ("layers.0.mlp.gate_up_proj", "blk.0.ffn_up.weight"),
        ("layers.10.mlp.down_proj", "blk.10.ffn_down.weight"),
        ("lm_head", "output.weight"),
        ("embed_tokens", "token_embd.weight"),
    ],
)
def test_matrices_have_their_names_in_the_file(matrix: str, tensor: str) -> None:
    assert tensor_of(matrix) == tensor


def test_a_matrix_that_is_not_as_the_map_says_is_told() -> None:
    params = {"type": "Q4_0", "pure": False, "tensors": [["ffn_down", "Q6_K"]]}
    params |= {"output_type": None, "embedding_type": None}
    written = [
        stored.Tensor("blk.0.ffn_down.weight", "Q8_0", (64, 64)),
        stored.Tensor("blk.0.ffn_up.weight", "Q4_0", (64, 64)),
    ]
    stored.check_quantized(written, "Q4_0", params, {"blk.0.ffn_down.weight": "Q8_0"})
    with pytest.raises(StepFailed, match="asked for in Q5_0"):
        stored.check_quantized(written, "Q4_0", params, {"blk.0.ffn_down.weight": "Q5_0"})


@given(
    st.sampled_from([4, 8]),
    st.sampled_from([32, 64, 128]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_blocks_are_what_ggml_decodes(
    bits: int, size: int, rows: int, groups: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    low, high = lattice.limits(bits)
    codes = random.integers(low, high + 1, (rows, groups * size), np.int8)
    values = random.uniform(-2, 2, (rows, groups)).astype(np.float32)
    matrix = Matrix(bits=bits, codes=codes, scales=lattice.to_scales(values))
    raw = blocks(matrix)
    decoded = [[weight for block in _cut(row, bits) for weight in _decoded(block)] for row in raw]
    assert np.array_equal(np.array(decoded), matrix.dense().astype(np.float64))


def _cut(row: Any, bits: int) -> list[bytes]:
    size = 2 + 4 * bits
    return [row[i : i + size].tobytes() for i in range(0, len(row), size)]


def _decoded(block: bytes) -> list[float]:
    """As ggml-quants.c does it, one weight at a time."""
    (scale,) = struct.unpack("<e", block[:2])
    if len(block) == 34:
        return [scale * code for code in struct.unpack("<32b", block[2:])]
    low = [scale * ((byte & 15) - 8) for byte in block[2:]]
    return low + [scale * ((byte >> 4) - 8) for byte in block[2:]]


@given(st.integers(1, 5), st.integers(1, 8))
def test_turned_rows_are_pairs_of_the_two_halves_of_a_head(heads: int, half: int) -> None:
    order = permuted(heads * 2 * half, heads)
    for head in range(heads):
        start = head * 2 * half
        for i in range(half):
            assert order[start + 2 * i] == start + i
            assert order[start + 2 * i + 1] == start + half + i


@pytest.mark.parametrize("preset", ["tensors", "ends", "first", "pure"])
def test_a_preset_and_the_map_that_says_the_same_give_the_same_file(
    facts: dict[str, Any], preset: str
) -> None:
    assert section(facts, "presets")[preset]


def test_types_stand_side_by_side(facts: dict[str, Any]) -> None:
    found = section(facts, "mixture")
    assert found["kinds"] == {
        "layers.0.self_attn.qkv_proj": "BF16",
        "layers.1.mlp.gate_up_proj": "Q6_K",
        "embed_tokens": "Q8_0",
        "lm_head": "Q5_0",
    }
    assert found["tied"] == "Q8_0"
    assert "no `blk.9.ffn_down.weight`" in found["lost"][1]


CASES = ["tiny", "tiny 64", "tiny 128", "Phi-2", "Llama-3.2-1B", "Qwen2.5-0.5B", "Mistral-7B-v0.3"]


@pytest.mark.parametrize("case", CASES)
def test_learned_weights_are_stored_as_they_are(facts: dict[str, Any], case: str) -> None:
    """What is left is llama.cpp's arithmetic: it rounds activations to 8 bits."""
    found = section(facts, "learned")[case]
    assert found["right"]
    assert found["settings"]
    assert found["wide_kld"] < 1e-6
    assert found["kld"] < 0.01


def test_other_weights_than_the_learned_ones_are_told(facts: dict[str, Any]) -> None:
    found = section(facts, "refused")
    assert "are not those of the checkpoint's" in found["checkpoint"][1]
    assert found["same"][0] == "nothing raised"
    assert "does not hold the learned weights" in found["other"][1]

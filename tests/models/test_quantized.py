"""Checkpoints that were quantized before: read where that is exact, else refused by name."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import hostile_checkpoints as hostile
from testing.drive import facts_of, section
from testing.hostile_checkpoints import base
from testing.packed_headers import GPTQ, edit, headers, pieces, save

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import checkpoints, packed_formats

DRIVER = Path(__file__).parent / "quantized_driver.py"
KINDS = (
    *("gptq-2", "gptq-3", "gptq-4", "gptq-8", "gptq-v2", "gptq-act-order", "awq"),
    *("compressed-4", "compressed-4-zeros", "compressed-int8", "compressed-fp8", "fp8"),
    *("nf4", "nf4-nested", "llm-int8", "mlx-3", "mlx-4", "mlx-8"),
)


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, in one process of the toolchain's Python."""
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("quantized"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_the_number_that_its_code_and_scale_stand_for(
    facts: dict[str, Any], kind: str
) -> None:
    found = section(facts, kind)
    assert found["names"]
    assert found["differing"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_describes_the_widened_model(facts: dict[str, Any], kind: str) -> None:
    found = section(facts, kind)
    assert found["as planned"]
    assert found["quantized"] is None


def test_all_kinds_are_tested(facts: dict[str, Any]) -> None:
    assert set(facts) == set(KINDS)


# --- from headers and config alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base(tmp_path / "m")
    return tmp_path / "m"


def refusal(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        checkpoints.read(folder)
    assert caught.value.exit_code == 8
    return caught.value


def test_headers_of_gptq_describe_the_same_model_in_16_bits(folder: Path) -> None:
    plain = checkpoints.read(folder)
    pieces(folder)
    edit(folder, quantization_config=GPTQ)
    found = checkpoints.read(folder)
    assert found.parameters == plain.parameters
    assert found.weight_bytes == 2 * found.parameters
    assert found.quantized == "GPTQ, 4 bits"
    assert "quantization_config" not in found.config
    assert "W40" in {remark.rule for remark in found.remarks}


def test_a_quantized_folder_is_taken_first_and_widened_then(folder: Path) -> None:
    pieces(folder)
    edit(folder, quantization_config=GPTQ)
    original = take.of_folder(folder)
    assert [step.name for step in original.before] == ["stored"]
    assert (original.step.name, original.step.runs) == ("source", "models/widen")
    assert original.notes == {"widened_from": "GPTQ, 4 bits"}


ODD: Mapping[str, tuple[dict[str, Any], str]] = {
    "a piece is missing": ({"scales": None}, "scales` is missing"),
    "of another dtype": ({"scales": ("I32", (1, 32))}, "is I32"),
    "codes of other bits": ({"qweight": ("I32", (8, 32))}, "4 bits"),
    "too few groups": ({"scales": ("F16", (7, 32))}, "groups"),
    "zero points of another shape": ({"qzeros": ("I32", (1, 5))}, "1 × 5, not 1 × 4"),
    "an order of other inputs": ({"g_idx": ("I32", (31,))}, "31, not 32"),
}


@pytest.mark.parametrize("name", ODD)
def test_pieces_that_make_no_weight_are_refused_by_name(folder: Path, name: str) -> None:
    changes, words = ODD[name]
    pieces(folder, **changes)
    edit(folder, quantization_config=GPTQ)
    error = refusal(folder)
    assert "model.layers.0.self_attn.o_proj" in error.message
    assert words in error.message
    assert "16 bits" in (error.hint or "")


REFUSED: Mapping[str, tuple[Any, str]] = {
    "HQQ": ({"quant_method": "hqq"}, "HQQ"),
    "MXFP4": ({"quant_method": "mxfp4"}, "MXFP4"),
    "unknown": ({"quant_method": "\x1bnew"}, "quant_method"),
    "no name": ({"x": 1}, "unnamed"),
    "bits of GPTQ": (GPTQ | {"bits": 5}, "5"),
    "bits that are none": (GPTQ | {"bits": "4"}, "only 2, 3, 4 and 8"),
    "a group of no weights": (GPTQ | {"group_size": 0}, "group_size"),
    "Marlin": (GPTQ | {"checkpoint_format": "marlin"}, "marlin"),
    "GEMV": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
    "sparse": (
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {}},
        "marlin-24",
    ),
    "NVFP4": (
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {},
        },
        "nvfp4",
    ),
    "no scheme": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        "no scheme",
    ),
    "a scheme that is none": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": "int4"}}},
        "scheme for weights is `int4`",
    ),
    "AWQ without zero points": (
        {"quant_method": "awq", "bits": 4, "zero_point": False},
        "zero_point",
    ),
    "E5M2": ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
    "MLX's MXFP4": ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mxfp4"),
    "none of its weights": (GPTQ, "none of its weights"),
    "no table": ("gptq", "no table"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_formats_that_are_not_read_are_refused_by_name(folder: Path, name: str) -> None:
    said, words = REFUSED[name]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    raw = json.dumps(config | {"quantization_config": said})
    (folder / "config.json").write_text(raw.replace("\\u001b", "?"), "utf-8")
    error = refusal(folder)
    assert words in error.message
    assert "\x1b" not in error.message


@settings(max_examples=40, deadline=None)
@given(
    said=st.dictionaries(
        st.sampled_from(
            ("quant_method", "bits", "group_size", "format", "config_groups", "mode", "dynamic")
        ),
        st.sampled_from(
            ("gptq", "awq", "compressed-tensors", "fp8", "bitsandbytes", 4, -1, 32, None, [], {})
        ),
        min_size=1,
    )
)
def test_whatever_settings_say_the_answer_is_a_model_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("m") / "m"
    base(folder)
    pieces(folder)
    edit(folder, quantization_config=said)
    found = None
    with contextlib.suppress(SourceError):
        found = checkpoints.read(folder)
    shutil.rmtree(folder)
    assert found is None or found.quantized


def test_an_order_of_its_own_needs_the_numbers_of_groups(folder: Path) -> None:
    pieces(folder)
    edit(folder, quantization_config=GPTQ)
    save(folder, {n: t for n, t in headers(folder).items() if not n.endswith("g_idx")})
    assert checkpoints.read(folder).quantized
    edit(folder, quantization_config=GPTQ | {"desc_act": True})
    assert "g_idx` is missing" in refusal(folder).message


WHOLE: Mapping[str, dict[str, Any]] = {
    "gptq": {**GPTQ, "checkpoint_format": "gptq", "dynamic": {"x": {"bits": 8}}},
    "awq": {"bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "compressed-tensors": {
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "sparsity_config": {"format": "dense"},
        "config_groups": {
            "a": {
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True},
                "input_activations": None,
                "format": None,
            }
        },
    },
    "fp8": {"fmt": "e4m3", "weight_block_size": [16, 16]},
    "bitsandbytes": {"load_in_4bit": True, "load_in_8bit": False},
    "mlx": {"group_size": 32, "bits": 4, "mode": "affine", "a": {"bits": 8}},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_any_value_of_any_setting_is_read_or_refused_in_words(kind: str) -> None:
    odd = [value for value in hostile.ODD.values() if not str(value).startswith(hostile.RAW)]
    for path in hostile.leaves(WHOLE[kind]):
        for value in odd if path else ():
            settings = hostile.replaced(WHOLE[kind], path, value)
            assert packed_formats.problem(kind, settings).isprintable()
            assert packed_formats.rounds_more(kind, settings) in (True, False)

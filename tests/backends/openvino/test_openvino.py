"""OpenVINO: options and rules, equality with the exporter's own quantization, fidelity, the NPU's
pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import facts_of, section

from phipipe.backends import openvino, rules
from phipipe.backends.base import Job
from phipipe.models.checkpoint import Checkpoint

DRIVER = Path(__file__).parent / "driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, in one process of the toolchain's Python."""
    folder = tmp_path_factory.mktemp("openvino") / "facts"
    return facts_of(python_of("openvino"), DRIVER, folder)


def recipe(precision: str) -> Any:
    return SimpleNamespace(
        precision=precision,
        backend="openvino",
        calibrate=SimpleNamespace(tokens=4096),
        weights=SimpleNamespace(learn=None),
    )


class Shape(SimpleNamespace):
    """What of a checkpoint is looked at here."""

    input_widths = Checkpoint.input_widths
    is_divided_by = Checkpoint.is_divided_by


def checkpoint(**changes: Any) -> Any:
    shape: dict[str, Any] = {
        "large": False,
        "parameters": 300_000_000,
        "weight_bytes": 600_000_000,
        "tied": False,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "heads": 32,
        "head_size": 96,
        "longrope": False,
        "context_length": 4096,
        "original_context_length": 4096,
    }
    return Shape(**shape | changes)


def advice(precision: str, shape: Any = None, **options: Any) -> list[tuple[str, str]]:
    found = rules.check(
        Job(recipe(precision), openvino.Options(**options), shape or checkpoint()), openvino.RULES
    )
    return [(entry.rule, entry.level) for entry in found]


def planned(precision: str, **options: Any) -> list[Any]:
    return openvino.steps(
        Job(recipe(precision), openvino.Options(**options), checkpoint(), {"use_cache": True})
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 48},
        {"group_size": 1},
        {"ratio": 0.0},
        {"ratio": 1.1},
        {"ratio": "0.5"},
        {"ratio": True},
        {"symmetric": "yes"},
        {"awq": 1},
        {"backup": "int4"},
        {"sensitivity": "guess"},
        {"prompt_length": True},
        {"lora_correction": True},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        openvino.Options.model_validate(wrong)


def test_options_describe_themselves() -> None:
    fields = openvino.Options.model_json_schema()["properties"].values()
    assert all(field.get("description") for field in fields)


def test_all_but_fp32_share_one_conversion() -> None:
    assert planned("fp16")[0] == planned("int8")[0] == planned("int4")[0]
    assert planned("fp16")[0].params == {"precision": "fp16", "config_patch": {"use_cache": True}}
    assert [step.unquantized for step in planned("fp32")] == ["float32"]
    assert [step.name for step in planned("int4")] == ["convert", "quantize"]


def test_the_npus_lengths_change_no_weight() -> None:
    assert planned("int4") == planned("int4", prompt_length=512, response_length=64)


def test_int8_is_told_its_symmetry_only() -> None:
    assert planned("int8", symmetric=True)[1].params == {"bits": 8, "symmetric": True}


@pytest.mark.parametrize(
    "options",
    [
        {"awq": True},
        {"scale_estimation": True},
        {"gptq": True},
        {"ratio": 0.8, "sensitivity": "mean_activation_variance"},
    ],
)
def test_options_that_learn_need_the_calibration(options: dict[str, Any]) -> None:
    assert planned("int4", **options)[1].needs == {"model": "convert", "calibration": "calibration"}
    assert planned("int4")[1].needs == {"model": "convert"}


def test_parameters_of_steps_are_json() -> None:
    params = planned("int4")[1].params
    assert json.loads(json.dumps(params)) == params


def test_schemes_are_few_words() -> None:
    def words(precision: str, **options: Any) -> str:
        return openvino.scheme(Job(recipe(precision), openvino.Options(**options)))

    assert words("int4") == "int4 asymmetric, groups of 128"
    assert (
        words("int4", group_size=-1, symmetric=True, awq=True)
        == "int4 symmetric, a scale per row, AWQ"
    )
    assert words("int4", ratio=0.8) == "int4 asymmetric, groups of 128, 80% of the weights"
    assert words("int8") == "int8 asymmetric"
    assert words("fp16") == "f16"


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("int4", {"awq": True}),
        ("int8", {"symmetric": True}),
        ("int8", {}),
        ("fp16", {}),
        ("fp32", {}),
    ],
)
def test_sensible_recipes_raise_nothing(precision: str, options: dict[str, Any]) -> None:
    assert advice(precision, **options) == []


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize(
    "options", [{"group_size": 128}, {"ratio": 1.0}, {"awq": False}, {"prompt_length": 512}]
)
def test_options_of_int4_are_refused_elsewhere(precision: str, options: dict[str, Any]) -> None:
    assert ("V02", "error") in advice(precision, **options)


def test_a_sensitivity_without_a_ratio_is_refused() -> None:
    assert advice("int4", sensitivity="mean_activation_variance") == [("V14", "error")]


def test_lengths_beyond_the_context_are_refused() -> None:
    assert advice("int4", prompt_length=4000, response_length=128) == [("V12", "error")]


def test_longrope_is_warned_of() -> None:
    assert advice("int4", checkpoint(longrope=True, context_length=131072)) == [("M12", "warning")]


@pytest.mark.parametrize(
    ("shape", "size", "layer", "working"),
    [
        ({"hidden_size": 320}, 128, "hidden_size: 320", "32, 64, -1"),
        ({"intermediate_size": 8224}, 128, "down projection", "32, -1"),
        ({"heads": 3}, 256, "attention output projection", "32, -1"),
    ],
)
def test_groups_that_do_not_divide_a_row_are_refused(
    shape: dict[str, int], size: Any, layer: str, working: str
) -> None:
    found = rules.check(
        Job(recipe("int4"), openvino.Options(group_size=size), checkpoint(**shape)), openvino.RULES
    )
    assert [(entry.rule, entry.level) for entry in found] == [("V13", "error")]
    assert layer in found[0].message
    assert f": {working} " in (found[0].hint or "")


CASES = ["int4-symmetric", "int4", "int8", "int8-symmetric"]
OPTIONS = ["row", "32", "ratio", "hessian", "none", "all", "awq-scale", "learned"]


@pytest.mark.parametrize("case", CASES)
def test_constants_and_settings_equal_the_exporters(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "equality")[case] == [True, True]


@pytest.mark.parametrize(
    ("name", "limit"), [("fp32", 1e-6), ("fp16", 1e-6), ("int8", 1e-4), ("int4", 2e-3)]
)
def test_logits_are_those_of_transformers(facts: dict[str, Any], name: str, limit: float) -> None:
    assert section(facts, "fidelity")[name]["kld"] < limit


@pytest.mark.parametrize("name", ["fp32", "fp16", *CASES, *OPTIONS])
def test_generation_follows_the_logits_and_leaves_no_state(
    facts: dict[str, Any], name: str
) -> None:
    found = section(facts, "fidelity")[name]
    assert found["chain"]
    assert found["again"]
    assert found["dtype"] == "float32"


def test_more_bits_and_calibration_are_closer(facts: dict[str, Any]) -> None:
    kld = {name: found["kld"] for name, found in section(facts, "fidelity").items()}
    assert kld["fp16"] < kld["int8"] < kld["learned"] < kld["int4"] < kld["all"]
    assert kld["32"] < kld["int4"]


@pytest.mark.parametrize("name", ["fp32", "fp16", *CASES, "row", "32", "none", "all"])
def test_the_planned_size_is_the_real_one(facts: dict[str, Any], name: str) -> None:
    planned, actual = section(facts, "sizes")[name]
    assert planned == pytest.approx(actual, rel=0.03)


def test_planned_memory_at_full_size_is_pinned() -> None:
    """To peaks that were measured once; nothing measures them again."""
    shape = checkpoint(parameters=3_821_079_552, weight_bytes=7_642_159_104)
    made = openvino.steps(Job(recipe("int4"), openvino.Options(symmetric=True), shape, {}))
    assert [step.memory_bytes for step in made] == [
        pytest.approx(0.87e9, rel=0.2),
        pytest.approx(1.62e9, rel=0.2),
    ]
    assert made[1].output_bytes == pytest.approx(2_068_554_739, rel=0.01)


@pytest.mark.parametrize(
    ("parameters", "vocabulary", "hidden", "peak"),
    [(3_821_079_552, 32_064, 3072, 1.80e9), (14_659_507_200, 100_352, 5120, 6.93e9)],
    ids=["Phi-3.5-mini", "Phi-4"],
)
def test_planned_memory_of_large_models_is_pinned(
    parameters: int, vocabulary: int, hidden: int, peak: float
) -> None:
    """To peaks that were measured once; nothing measures them again."""
    sizes = {
        "parameters": parameters,
        "weight_bytes": 2 * parameters,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
    }
    (step,) = openvino.steps(
        Job(recipe("int4"), openvino.Options(symmetric=True), checkpoint(large=True, **sizes), {})
    )
    assert step.memory_bytes == pytest.approx(peak, rel=0.05)


def test_weights_that_stay_in_files_take_no_memory() -> None:
    assert planned("fp16")[0].memory_bytes == openvino.CONVERSION_BYTES
    stored = checkpoint(weight_bytes=1_200_000_000)
    (step,) = openvino.steps(Job(recipe("fp16"), openvino.Options(), stored, {}))
    assert step.memory_bytes == openvino.CONVERSION_BYTES + 600_000_000


@pytest.mark.parametrize("name", ["tied", "longrope", "window"])
def test_other_architectures_are_exact(facts: dict[str, Any], name: str) -> None:
    for count in (48, 200):
        found = section(facts, "variants")[f"{name} {count}"]
        assert found["kld"] < 1e-6
        assert found["chain"]


def test_a_tied_embedding_is_the_head_and_no_other_layer_is(facts: dict[str, Any]) -> None:
    assert section(facts, "variants")["tied kinds"] == ["u8", "u4"]


@pytest.mark.parametrize(
    "change",
    ["symmetric", "group", "backup", "all", "share", "bits", "float", "zero", "lost", "quantized"],
)
def test_a_graph_that_was_not_asked_for_is_found(facts: dict[str, Any], change: str) -> None:
    assert section(facts, "failures")[change][0] == "StepFailed"


def test_failures_name_the_layer(facts: dict[str, Any]) -> None:
    found = section(facts, "failures")
    assert found["untouched"][0] == "nothing raised"
    for change in ("float", "zero", "lost"):
        assert f"`{found['name']}`" in found[change][1]


@pytest.mark.parametrize("step", ["convert", "int4", "learned"])
def test_two_builds_are_equal_to_the_byte(facts: dict[str, Any], step: str) -> None:
    assert section(facts, "reproducible")[step]


@pytest.mark.parametrize("model", ["whole", "tied"])
@pytest.mark.parametrize("dtype", ["fp16", "mixed"])
def test_a_graph_is_the_same_whatever_its_weights_were_stored_in(
    facts: dict[str, Any], model: str, dtype: str
) -> None:
    assert section(facts, "stored")[f"{model} {dtype}"]


@pytest.mark.parametrize("case", ["int8", "none", "tied", "all", "mixed"])
def test_a_large_models_weights_are_the_same(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "direct")[case]


def test_nothing_of_this_machine_ships_and_nothing_calls_home(facts: dict[str, Any]) -> None:
    assert section(facts, "privacy") == {"named": [], "telemetry": False}


def test_the_packaged_tokenizer_is_the_sources(facts: dict[str, Any]) -> None:
    found = section(facts, "tokenizer")
    assert found["ids"][0] == found["ids"][1]
    assert found["text"] == "the fox"
    assert found["chat"] == "<|user|>\nhi<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("case", ["int4-symmetric", "row"])
def test_the_npus_pipeline_gives_the_likeliest_tokens(facts: dict[str, Any], case: str) -> None:
    found = section(facts, "npu")[case]
    assert found["gap_nats"] < 1e-3
    assert (found["pipeline"], found["tokens"]) == ("NPUW on CPU", 32)


def test_the_pipeline_hands_over_tokens_as_they_come(facts: dict[str, Any]) -> None:
    found = section(facts, "npu")
    assert len(found["streamed"]) == 16
    assert found["again"] == found["streamed"][:4]
    assert found["likeliest"] < 0.2
    assert found["logits"] == [
        "StepFailed",
        "openvino-genai's pipeline yields tokens, and no logits",
        "",
    ]


def test_another_answer_of_the_npus_pipeline_fails(facts: dict[str, Any]) -> None:
    kind, message, _ = section(facts, "npu")["wrong"]
    assert kind == "StepFailed"
    assert "nats less likely" in message

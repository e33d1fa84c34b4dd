"""ONNX Runtime GenAI: options, the graph's verification, and equality with the bare builder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import facts_of, section
from testing.shapes import phi3

from phipipe import hardware
from phipipe.backends import onnxruntime
from phipipe.backends.base import Job
from phipipe.backends.onnxruntime.schemes import Linear, raised_nodes, schemes_of
from phipipe.recipe.device import Unit
from phipipe.recipe.learned import Weights

DRIVER = Path(__file__).parent / "driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, in one process of the toolchain's Python."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    return facts_of(python_of("onnxruntime"), DRIVER, folder)


def linears(*names: str) -> list[Linear]:
    return [Linear(name=name, weight=f"{name}.weight", k=128, n=256) for name in names]


def test_options_have_defaults() -> None:
    options = onnxruntime.Options()
    assert (options.block_size, options.symmetric, options.algorithm, options.accuracy_level) == (
        32,
        True,
        "default",
        None,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 48},
        {"accuracy_level": 5},
        {"algorithm": "hqq"},
        {"mixed": "all"},
        {"symmetric": "yes"},
        {"accuracy_level": True},
        {"int4_block_size": 32},
        {"algorithm": "k_quant", "symmetric": True},
    ],
)
def test_options_that_the_builder_would_ignore_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        onnxruntime.Options.model_validate(wrong)


def test_k_quant_is_recorded_as_asymmetric() -> None:
    assert onnxruntime.Options(algorithm="k_quant").symmetric is False


def test_options_describe_themselves() -> None:
    fields = onnxruntime.Options.model_json_schema()["properties"].values()
    assert all(field.get("description") for field in fields)


def planned(precision: str) -> list[Any]:
    recipe: Any = SimpleNamespace(precision=precision, backend="onnxruntime", weights=Weights())
    checkpoint = phi3(parameters=200_000, vocab_size=512, hidden_size=128)
    return onnxruntime.steps(
        Job(recipe, onnxruntime.Options(), checkpoint, {"layer_types": ["sliding_attention"]})
    )


def test_all_precisions_share_one_conversion() -> None:
    assert planned("fp32")[0] == planned("int8")[0] == planned("int4")[0]
    assert planned("fp32")[0].params == {"config_patch": {"layer_types": ["sliding_attention"]}}


def test_fp32_is_not_quantized() -> None:
    assert [step.name for step in planned("fp32")] == ["convert"]
    assert [step.name for step in planned("int4")] == ["convert", "quantize"]


def on(api: str, precision: str, **options: Any) -> list[Any]:
    recipe: Any = SimpleNamespace(precision=precision, backend="onnxruntime", weights=Weights())
    checkpoint = phi3(parameters=200_000, vocab_size=512, hidden_size=128)
    unit = Unit(api=api, precisions=(precision,))
    return onnxruntime.steps(Job(recipe, onnxruntime.Options(**options), checkpoint, {}, unit))


def test_gpus_get_graphs_of_their_own_in_16_bits() -> None:
    assert on("cuda", "fp16")[0] == on("cuda", "int4")[0]
    assert on("cuda", "fp16")[0].params == {
        "config_patch": {},
        "provider": "cuda",
        "io_dtype": "fp16",
    }
    assert on("cuda", "fp16")[0].unquantized == "float16"
    assert on("directml", "int4")[0].params["provider"] == "dml"


def test_accuracy_level_follows_the_device() -> None:
    assert planned("int4")[1].params["accuracy_level"] == 4
    assert on("webgpu", "int4")[1].params["accuracy_level"] == 4
    assert on("cuda", "int4")[1].params["accuracy_level"] == 0
    assert on("cuda", "int4", accuracy_level=1)[1].params["accuracy_level"] == 1


def test_a_large_models_weights_are_not_written_before_they_are_rounded() -> None:
    recipe: Any = SimpleNamespace(precision="int4", backend="onnxruntime", weights=Weights())
    checkpoint = phi3(parameters=2 * 10**9, vocab_size=512, hidden_size=128)
    convert, quantize = onnxruntime.steps(Job(recipe, onnxruntime.Options(), checkpoint, {}))
    assert (convert.params["linked"], convert.unquantized, quantize.needs["source"]) == (
        True,
        None,
        "source",
    )
    assert convert.output_bytes < 10**9 < quantize.output_bytes
    recipe.precision = "fp32"
    (whole,) = onnxruntime.steps(Job(recipe, onnxruntime.Options(), checkpoint, {}))
    assert whole.unquantized == "float32"
    assert "linked" not in whole.params


def test_rounding_from_the_checkpoint_changes_no_byte(facts: dict[str, Any]) -> None:
    found = section(facts, "links")
    assert len(found["made"]) == 22
    assert {
        name: changed for name, changed in (found["made"] | found["gpu"]).items() if changed
    } == {}
    assert all(size < 100_000 for size in found["data_bytes"].values())  # norms and rotary tables


def test_a_checkpoint_that_is_not_the_linked_one_is_named(facts: dict[str, Any]) -> None:
    found = section(facts, "links")
    assert found["lost"][:2] == [
        "StepFailed",
        "weight `model.embed_tokens.weight` lies in `model.safetensors`, which is not there",
    ]
    assert found["short"][0] == "StepFailed"
    assert "is too short" in found["short"][1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "`model.norm.weight` is missing"),
        ("unknown", "`model.layers.9.mlp.down_proj.weight` is unknown"),
        ("shape", "does not fit its config"),
        ("dtype", "has the dtype I32"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    facts: dict[str, Any], name: str, words: str
) -> None:
    kind, said, _ = section(facts, "foreign")[name]
    assert kind == "StepFailed"
    assert words in said


GPUS = [(api, p) for api, table in onnxruntime.PRECISIONS.items() for p in table if api != "cpu"]


@pytest.mark.parametrize(("api", "precision"), GPUS)
def test_a_gpus_graph_is_the_bare_builders(facts: dict[str, Any], api: str, precision: str) -> None:
    assert section(facts, "providers")[f"{api} {precision}"]["differences"] == []


@pytest.mark.parametrize(("api", "precision"), GPUS)
def test_a_gpus_graph_computes_the_sources_logits(
    facts: dict[str, Any], api: str, precision: str
) -> None:
    found = section(facts, "providers")[f"{api} {precision}"]
    assert found["kld"] < {"fp32": 1e-6, "fp16": 1e-4, "int8": 1e-3, "int4": 0.1}[precision]
    assert found["chain"]
    assert found["dtype"] == "float32"
    assert set(found["linears"]) == {
        {"fp32": "32", "fp16": "16", "int8": "8", "int4": "4"}[precision]
    }


def test_a_graph_for_another_provider_or_of_another_width_is_found(facts: dict[str, Any]) -> None:
    found = section(facts, "providers")
    assert "provider `dml`" in found["for another"][1]
    assert "not fp32" in found["of another width"][1]


def test_parameters_of_steps_are_json() -> None:
    step = planned("int4")[1]
    assert json.loads(json.dumps(step.params)) == step.params
    assert step.params["bits"] == 4


def test_mixed_head_raises_the_lm_head_only() -> None:
    names = ["/model/layers.0/mlp/down_proj/MatMul", "/lm_head/MatMul"]
    assert [name in raised_nodes("head", 32) for name in names] == [False, True]


def test_mixed_layers_raises_llama_cpps_choice() -> None:
    names = [f"/model/layers.{i}/mlp/down_proj/MatMul" for i in range(32)]
    raised = [i for i, name in enumerate(names) if name in raised_nodes("layers", 32)]
    assert raised == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_excluded_nodes_have_no_scheme() -> None:
    wanted = linears("/model/layers.0/mlp/down_proj/MatMul", "/lm_head/MatMul")
    schemes = schemes_of(wanted, onnxruntime.Options(exclude=("*/down_proj/*",)), 4)
    assert set(schemes) == {"/lm_head/MatMul"}


CASES = [
    "default",
    "default-asymmetric",
    "rtn",
    "k_quant",
    "head",
    "layers",
    "k_quant-layers",
    "block-64-level-0",
    "exclude",
    "embeddings",
    "int8",
    "int8-asymmetric",
    "int8-rtn",
]


@pytest.mark.parametrize("case", CASES)
def test_weights_nodes_and_files_equal_the_bare_builders(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "equality")["equal"][case] == []


@pytest.mark.parametrize("case", ["default", "rtn", "k_quant", "k_quant-layers", "exclude"])
def test_tied_weights_equal_the_bare_builders(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "equality")["equal_tied"][case] == []


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        ("int8", ["model.embed_tokens.weight"]),  # the builder's second copy of the head, in fp32
        ("layers", []),  # its embedding reads a weight that does not exist
        (
            "default-asymmetric",
            ["lm_head.MatMul.weight"],
        ),  # its embedding takes fp32 for packed values
    ],
)
def test_tied_embeddings_work_where_the_builders_do_not(
    facts: dict[str, Any], case: str, weights: list[str]
) -> None:
    different = section(facts, "equality")["equal_tied"][case]
    assert [name for name in different if not name.startswith("node ")] == weights
    assert "node /model/embed_tokens/GatherBlockQuantized" in different


def test_describe_counts_bits(facts: dict[str, Any]) -> None:
    bits = section(facts, "equality")["bits"]
    assert bits["plain default"]["linears"] == {"4": 16}
    assert bits["plain layers"]["linears"] == {"4": 11, "8": 5}
    assert bits["plain exclude"]["linears"] == {"4": 15, "32": 1}
    assert (
        bits["tied default"]["bits_per_weight"] < 5.1
    )  # 4 bits, a scale per 32 weights, a few norms


@pytest.mark.parametrize("source", ["plain", "tied"])
def test_fp32_logits_are_those_of_transformers(facts: dict[str, Any], source: str) -> None:
    found = section(facts, "fidelity")[source]
    assert found["largest_difference"] < 1e-4
    assert found["dtype"] == "float32"


@pytest.mark.parametrize("source", ["plain", "tied"])
def test_more_bits_are_closer(facts: dict[str, Any], source: str) -> None:
    found = section(facts, "fidelity")[source]["kld"]
    assert found["fp32"] < found["int8"] < found["layers"] < found["default"]


@pytest.mark.parametrize("source", ["plain", "tied"])
def test_generation_follows_the_logits(facts: dict[str, Any], source: str) -> None:
    assert set(section(facts, "fidelity")[source]["chains"].values()) == {True}


def test_answers_do_not_depend_on_the_number_of_threads(facts: dict[str, Any]) -> None:
    found = section(facts, "threads")
    (own, *others) = found["answers"].values()
    assert all(len(answer) > 1 for answer in own)
    assert others == [own] * 3
    assert found["same_files"]


def test_answers_get_a_thread_for_each_core_and_measurements_the_runtimes_own() -> None:
    asked: list[int] = []
    made = SimpleNamespace(Session=lambda folder, api, threads=0: asked.append(threads))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "phipipe.backends.onnxruntime.session", made)
        patch.setattr(onnxruntime, "session", made, raising=False)
        patch.setattr(hardware, "whole_cores", lambda: 6)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        onnxruntime.FACE.to_answer(Path())
        onnxruntime.FACE.to_answer(Path(), "cuda")
        onnxruntime.FACE.open(Path())
        patch.setenv("OMP_NUM_THREADS", "3")  # other steps run beside it
        onnxruntime.FACE.to_answer(Path())
    assert asked == [6, 0, 0, 3]


@pytest.mark.parametrize("prompt", [20, 150])
def test_prompts_shorter_and_longer_than_the_window_run(facts: dict[str, Any], prompt: int) -> None:
    found = section(facts, "window")
    assert found[f"fp32 {prompt}"]["largest_difference"] < 1e-4
    assert found[f"fp32 {prompt}"]["chain"]
    assert found[f"int4 {prompt}"]["chain"]


def test_the_source_is_never_changed(facts: dict[str, Any]) -> None:
    assert section(facts, "window")["source_unchanged"]


@pytest.mark.parametrize("attribute", ["bits", "accuracy_level", "block_size", "K"])
def test_a_wrong_attribute_is_found(facts: dict[str, Any], attribute: str) -> None:
    kind, message, _ = section(facts, "failures")[attribute]
    assert kind == "StepFailed"
    assert "/model/layers.1/mlp/down_proj/MatMul" in message
    assert attribute in message


@pytest.mark.parametrize("change", ["swapped", "twins", "dropped"])
def test_wrong_weights_are_found(facts: dict[str, Any], change: str) -> None:
    assert section(facts, "failures")[change][0] == "StepFailed"


def test_an_untouched_graph_passes(facts: dict[str, Any]) -> None:
    assert section(facts, "failures")["untouched"][0] == "nothing raised"


def test_an_exclusion_that_matches_nothing_is_refused(facts: dict[str, Any]) -> None:
    kind, message, hint = section(facts, "failures")["exclude"]
    assert kind == "RecipeError"
    assert "down_prj" in message
    assert "`/model/layers.1/mlp/down_proj/MatMul`" in hint


@pytest.mark.parametrize("step", ["convert", "default", "int8"])
def test_two_builds_are_equal_to_the_byte(facts: dict[str, Any], step: str) -> None:
    assert section(facts, "reproducible")[step]


@pytest.mark.parametrize("case", ["default", "k_quant-layers", "int8-rtn", "embeddings"])
def test_quantizing_in_slices_changes_no_byte(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "slices")[case] == []


def test_the_packaged_tokenizer_is_the_sources(facts: dict[str, Any]) -> None:
    found = section(facts, "tokenizer")
    assert found["ids"][0] == found["ids"][1]
    assert found["text"] == "the quick brown fox"
    assert found["chat"] == "<|user|>hi<|end|>"

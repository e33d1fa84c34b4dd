"""Olive: rotations and GPTQ before the conversion, what is asked of its passes, and the integers
that ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import drive, read, section
from testing.shapes import phi3
from testing.shell import Shell

from phipipe.algorithms import olive
from phipipe.backends import onnxruntime, qnn
from phipipe.backends.base import Job
from phipipe.backends.onnxruntime.layout import LM_HEAD
from phipipe.backends.onnxruntime.schemes import raised_nodes
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe.device import Unit
from phipipe.recipe.learned import Weights

DRIVER = Path(__file__).parent / "olive_driver.py"

CASES = ["plain", "asymmetric", "128", "head", "down", "layers"]
GPUS = ["cuda", "webgpu", "directml"]
RECIPE = """
name: learned
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: onnxruntime
precision: int4
evaluate:
  text: {builtin: stories}
  tokens: 2048
  gates: {kld_mean: {max: 0.002}, top1: {min: 0.95}}
measure: {prompt_tokens: 32, new_tokens: 8, repetitions: 1}
matrix:
  - {name: nearest, weights: none}
  - {name: gptq, quantize: {algorithm: gptq, mixed: down}}
  - {name: rotated, quantize: {algorithm: gptq, rotate: quarot}}
"""
NPU = """
name: turned
source: {builtin: tiny-phi3}
device: snapdragon-x-npu
backend: qnn
precision: int4
quantize: {rotate: quarot, context_length: 128}
calibrate: {tokens: 512, window: 128}
evaluate: {text: {builtin: stories}, tokens: 256, window: 96, gates: {kld_mean: {max: 0.01}}}
measure: {prompt_tokens: 16, new_tokens: 2, repetitions: 1}
"""


@pytest.fixture(scope="session")
def folder(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the driver made and found out, first in Olive's Python, then in onnxruntime's."""
    root = tmp_path_factory.mktemp("olive")
    drive(python_of("olive"), DRIVER, root)
    drive(python_of("onnxruntime"), DRIVER, root, "onnx")
    return root


@pytest.fixture(scope="session")
def facts(folder: Path) -> dict[str, Any]:
    return read(folder / "facts.json") | read(folder / "onnx.json")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("olive-run"), toolchains)


@pytest.fixture(scope="module")
def builds(shell: Shell) -> dict[str, dict[str, Any]]:
    path = shell.folder / "recipe.yaml"
    path.write_text(RECIPE)
    return {build["name"]: build for build in shell.run(recipe=path)}


def recipe(precision: str = "int4") -> Any:
    return SimpleNamespace(
        precision=precision,
        backend="onnxruntime",
        calibrate=SimpleNamespace(tokens=4096),
        weights=Weights(),
    )


def checkpoint(**changes: Any) -> Checkpoint:
    return phi3(**{"parameters": 10_000_000, "vocab_size": 512, "layers": 4, **changes})


def planned(precision: str = "int4", api: str = "cpu", **options: Any) -> dict[str, Any]:
    unit = Unit(api=api, precisions=(precision,))
    made = onnxruntime.steps(
        Job(recipe(precision), onnxruntime.Options(**options), checkpoint(), {}, unit)
    )
    return {step.name: step for step in made}


def needs(steps: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {name: dict(step.needs) for name, step in steps.items()}


@pytest.mark.parametrize(
    "wrong", [{"rotate": "hadamard"}, {"rotate": "none"}, {"algorithm": "GPTQ"}, {"mixed": "up"}]
)
def test_options_that_olive_would_ignore_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        onnxruntime.Options.model_validate(wrong)


def test_a_rotation_comes_before_the_conversion() -> None:
    assert needs(planned(rotate="quarot")) == {
        "rotate": {"source": "source"},
        "convert": {"source": "rotate"},
        "quantize": {"model": "convert"},
    }
    assert needs(planned(rotate="spinquant"))["rotate"] == {
        "source": "source",
        "calibration": "calibration",
    }


def test_rounding_is_learned_from_what_is_converted() -> None:
    found = needs(planned(algorithm="gptq"))
    assert list(found) == ["convert", "gptq", "quantize"]
    assert found["gptq"] == {"source": "source", "calibration": "calibration"}
    assert found["quantize"] == {"model": "convert", "rounded": "gptq"}
    assert needs(planned(algorithm="gptq", rotate="quarot"))["gptq"]["source"] == "rotate"


def test_all_devices_share_what_olive_made() -> None:
    asked = {"algorithm": "gptq", "rotate": "quarot"}
    here = planned(**asked)
    for api in GPUS:
        there = planned(api=api, **asked)
        assert (there["gptq"], there["rotate"]) == (here["gptq"], here["rotate"])


def test_floats_are_not_rotated() -> None:
    assert list(planned("fp32", rotate="quarot", algorithm="gptq")) == ["convert"]


def test_olives_steps_say_everything_that_decides_their_bytes() -> None:
    found = planned(algorithm="gptq", rotate="spinquant", block_size=128, mixed="down")
    assert found["gptq"].params == {
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
        "mixed": "down",
        "damp": 0.01,
    }
    asked = {"method": "spinquant", "mode": "hadamard", "seed": 0, "activation_bits": 8}
    assert found["rotate"].params == asked
    assert {found[name].toolchain for name in ("rotate", "gptq")} == {"olive"}


def test_without_olive_nothing_changes() -> None:
    step = planned()["quantize"]
    assert "rotate" not in step.params
    assert needs(planned()) == {"convert": {"source": "source"}, "quantize": {"model": "convert"}}


@pytest.mark.parametrize(
    ("size", "there"), [(96, True), (3072, True), (5120, True), (128, True), (88, False)]
)
def test_rotations_are_hadamards_where_olive_has_one(size: int, there: bool) -> None:
    assert olive.has_hadamard(size) is there
    (step,) = olive.rotations("quarot", checkpoint(head_size=size))
    assert step.params["mode"] == ("hadamard" if there else "random")


def test_down_is_olives_k_quant_down() -> None:
    names = {f"/model/layers.{i}/mlp/down_proj/MatMul": i for i in range(32)}
    raised = raised_nodes("down", 32)
    assert LM_HEAD in raised
    assert {names[name] for name in raised if name in names} == {
        *range(4),
        *range(28, 32),
        *range(6, 28, 3),
    }
    assert len(raised) == 1 + 4 + 4 + 8


def test_the_npus_graphs_are_made_of_the_rotated_checkpoint() -> None:
    made = qnn.steps(Job(recipe(), qnn.Options(rotate="quarot"), checkpoint(), {}))
    assert [step.name for step in made[:2]] == ["rotate", "convert"]
    assert made[1].needs == {"source": "rotate"}
    assert qnn.scheme(Job(recipe(), qnn.Options(rotate="quarot"))).endswith(", rotated")


def test_schemes_name_what_olive_did() -> None:
    options = onnxruntime.Options(algorithm="gptq", rotate="quarot", mixed="down")
    words = "MatMulNBits, 4 bits, blocks of 32, 8-bit head and down projections, GPTQ, rotated"
    assert onnxruntime.scheme(Job(recipe(), options)) == words


@pytest.mark.parametrize("case", ["plain quarot", "plain random", "plain spinquant", "tied quarot"])
def test_a_rotated_model_computes_the_same_with_other_weights(
    facts: dict[str, Any], case: str
) -> None:
    found = section(facts, "rotation")[case]
    assert found["kld"] < 1e-9
    assert found["equal"] == []
    assert found["unchanged"], "the source"


@pytest.mark.parametrize("case", ["plain quarot", "tied quarot"])
def test_a_rotated_checkpoint_keeps_the_sources_files(facts: dict[str, Any], case: str) -> None:
    found = section(facts, "rotation")[case]
    tied = case.startswith("tied")
    assert found["new"] == (["lm_head.weight"] if tied else [])
    assert found["config"] == [*(["tie_word_embeddings"] if tied else []), "torch_dtype"]
    assert found["missing"] == ["README.md"]
    assert all(name == "config.json" or name.startswith("model") for name in found["changed"])


def test_spinquant_learns(facts: dict[str, Any]) -> None:
    assert section(facts, "rotation")["learned"] > 0


def test_rotation_spreads_weights_that_stand_out(facts: dict[str, Any]) -> None:
    found = section(facts, "outliers")
    assert found["same"] < 1e-6
    assert found["rotated"] < 0.6 * found["as it is"]


@pytest.mark.parametrize("case", ["plain", "asymmetric", "128"])
def test_gptq_is_closer_than_rounding_to_nearest(facts: dict[str, Any], case: str) -> None:
    found = section(facts, "rounding")
    assert found["kld"][case] < 0.6 * found["nearest"][case]


def test_more_bits_are_closer(facts: dict[str, Any]) -> None:
    found = section(facts, "rounding")["kld"]
    assert found["layers"] < found["down"] < found["head"] < found["plain"] < found["128"]


@pytest.mark.parametrize(
    ("case", "raised"),
    [
        ("plain", []),
        ("head", ["lm_head"]),
        ("down", ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj"]),
    ],
)
def test_exactly_what_was_asked_stays_at_8_bits(
    facts: dict[str, Any], case: str, raised: list[str]
) -> None:
    found = section(facts, "rounding")["bits"][case]
    assert sorted(name for name, bits in found.items() if bits == 8) == raised
    assert len(found) == 21
    assert set(found.values()) <= {4, 8}


def test_what_is_not_rounded_is_the_sources_own(facts: dict[str, Any]) -> None:
    found = section(facts, "rounding")
    assert found["changed"] == ["config.json", "model.safetensors"]
    head = {"lm_head.qweight": "torch.uint8", "lm_head.scales": "torch.float32"}
    assert found["tied"] == {**head, "model.embed_tokens.weight": "torch.bfloat16"}


@pytest.mark.parametrize("step", ["quarot", "random", "spinquant", "gptq"])
def test_two_runs_are_equal_to_the_byte(facts: dict[str, Any], step: str) -> None:
    assert section(facts, "reproducible")[step]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("typo", "`Gptq` has no parameter `grup_size`"),
        ("unknown", "`QuaRot` has no parameter `temperature`"),
        ("text", "takes `bits: '4'` as"),
        ("type", "refuses `sym`"),
        ("value", "refuses `rotate_mode`"),
        ("refused", "refuses its parameters"),
        ("silent", "ended without an error, and without a model"),
    ],
)
def test_what_olive_ignores_is_an_error(facts: dict[str, Any], case: str, words: str) -> None:
    kind, said, _ = section(facts, "settings")[case]
    assert kind == "StepFailed"
    assert words in said


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "left `model.layers.2.mlp.down_proj` unquantized"),
        ("shape", "down_proj.scales` is torch.float32 (2, 24)"),
        ("sign", "not positive"),
        ("norm", "`model.norm.weight` is not the source's own"),
        ("more", "unexpected tensor"),
        ("bits", "`bits: 4`, not 8"),
        ("layers", "overrides"),
        ("not rotated", "was not rotated"),
        ("not fused", "was not fused"),
        ("distorted", "rows changed in length"),
        ("lost", "differ in `model.layers.2.mlp.down_proj.weight`"),
    ],
)
def test_results_that_were_not_asked_for_fail(facts: dict[str, Any], case: str, words: str) -> None:
    kind, said, _ = section(facts, "failures")[case]
    assert kind == "StepFailed"
    assert words in said


@pytest.mark.parametrize("case", ["untouched", "untouched rotation"])
def test_an_untouched_result_passes(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "failures")[case][0] == "nothing raised"


def test_olive_connects_nowhere_and_leaves_nothing_behind(facts: dict[str, Any]) -> None:
    assert section(facts, "outside") == {"events": [], "telemetry": "None", "scratch": []}


@pytest.mark.parametrize(
    "case", [*(f"cpu {name}" for name in CASES), *(f"{api} down" for api in GPUS)]
)
def test_the_integers_that_ship_are_those_that_were_learned(
    facts: dict[str, Any], case: str
) -> None:
    found = section(facts, "models")
    assert found["levels"][case] == []
    assert found["scales"][case] <= (
        0 if case.startswith("cpu") else 2**-11
    )  # a GPU's graph has them in 16 bits


@pytest.mark.parametrize("case", CASES)
def test_the_model_computes_what_the_rounded_checkpoint_does(
    facts: dict[str, Any], case: str
) -> None:
    expected = section(facts, "rounding")["kld"][case]
    assert section(facts, "models")["kld"][f"cpu {case}"] == pytest.approx(expected, rel=1e-3)


def test_learned_rounding_is_closer_than_onnxruntimes_own(facts: dict[str, Any]) -> None:
    found = section(facts, "models")
    assert found["kld"]["cpu plain"] < 0.7 * found["kld"]["cpu default"]
    assert found["linears"]["cpu down"] == {"4": 23, "8": 3}
    assert found["linears"]["directml down"] == {"4": 33, "8": 3}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("swapped", "that of another matrix"),
        ("another", "that of another matrix"),
        ("groups", "does not have the shape"),
        ("missing", "has no weight for `/lm_head/MatMul`"),
    ],
)
def test_another_models_integers_are_refused(facts: dict[str, Any], case: str, words: str) -> None:
    kind, said, _ = section(facts, "mistakes")[case]
    assert kind == "StepFailed"
    assert words in said


def test_looking_at_slices_changes_no_byte(facts: dict[str, Any]) -> None:
    assert facts["slices"] == []


def test_recipes_with_olives_steps_run_to_the_end(builds: dict[str, dict[str, Any]]) -> None:
    kld = {name: build["evaluation"]["metrics"]["kld_mean"] for name, build in builds.items()}
    assert kld["learned-gptq"] < 0.5 * kld["learned-nearest"]
    assert kld["learned-rotated"] < 0.8 * kld["learned-nearest"]
    ran = {name: [step["name"] for step in build["steps"]] for name, build in builds.items()}
    assert {"rotate", "gptq", "check-parity"} <= set(ran["learned-rotated"])
    assert "gptq" not in ran["learned-nearest"]


def test_a_rotated_model_decodes_on_the_emulated_npu(shell: Shell) -> None:
    path = shell.folder / "npu.yaml"
    path.write_text(NPU)
    (build,) = shell.run(recipe=path)
    assert build["ok"]
    assert {"rotate", "check-parity", "emulate"} <= {step["name"] for step in build["steps"]}
    assert build["evaluation"]["metrics"]["kld_mean"] < 0.01

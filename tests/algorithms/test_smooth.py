"""``weights: {smooth: awq}``: a step before any backend's; its checkpoint computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive, read, section
from testing.plans import planned
from testing.shapes import phi3
from testing.shell import Shell

from phipipe.algorithms import smooth
from phipipe.errors import TargetError

DRIVER = Path(__file__).parent / "smooth_driver.py"
ON = "weights.smooth=awq"
ORIGINAL = ("baseline", "calibration", "rounding", "package")  # steps that read it all the same
WIDENED = ("Gemma-3-1B", "fp16")
LOUD = ("Phi-2", "Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen3-0.6B", "Gemma-3-1B")
DEVICES = {
    "llamacpp": "cpu-x86_64",
    "litert": "cpu-x86_64",
    "mlx": "apple-silicon",
    "onnxruntime": "cpu-x86_64",
    "openvino": "intel-npu",
    "qnn": "snapdragon-x-npu",
    "torch": "cpu-x86_64",
}
RECIPE = """
name: smoothed
source: {path: loud}
device: cpu-x86_64
backend: llamacpp
precision: int4
quantize: {type: Q4_0}
calibrate: {text: {builtin: stories}, tokens: 2048, window: 128}
evaluate: {text: {builtin: stories}, tokens: 1024, window: 256}
measure: {prompt_tokens: 16, new_tokens: 4, repetitions: 1}
matrix:
  - {name: plain}
  - {name: awq, weights: {smooth: awq}}
"""


@pytest.mark.parametrize("backend", DEVICES)
def test_every_backend_reads_the_smoothed_checkpoint_and_is_held_against_the_original(
    backend: str,
) -> None:
    sets = (f"backend={backend}", f"device={DEVICES[backend]}", "precision=int4", "quantize={}")
    steps = {step.name: step for step in planned(*sets, ON).steps}
    assert steps["smooth"].needs == {"source": "source", "calibration": "calibration"}
    by_rows = backend == "qnn"
    assert steps["smooth"].params["group"] == (0 if by_rows else smooth.GROUP)
    readers = {name for name, step in steps.items() if "source" in step.needs.values()}
    assert {"smooth", "baseline", "package"} <= readers <= {*ORIGINAL, "smooth"}
    assert any("smooth" in step.needs.values() for step in steps.values())
    assert steps["package"].params["scheme"].endswith(", AWQ-smoothed")
    without = {step.name: step for step in planned(*sets).steps}
    assert "smooth" not in without
    assert "smoothed" not in without["package"].params["scheme"]


@pytest.mark.parametrize(
    ("backend", "options", "group"),
    [
        ("openvino", "{group_size: -1}", 0),
        ("openvino", "{group_size: 64}", smooth.GROUP),
        ("litert", "{group_size: -1}", 0),
        ("torch", "{group_size: -1}", 0),
    ],
)
def test_scales_are_chosen_for_whole_rows_where_those_are_what_is_rounded(
    backend: str, options: str, group: int
) -> None:
    device = "intel-cpu" if backend == "openvino" else "cpu-x86_64"
    sets = (f"backend={backend}", f"device={device}", "precision=int4", f"quantize={options}")
    (step,) = (step for step in planned(*sets, ON).steps if step.name == "smooth")
    assert step.params["group"] == group


def test_a_large_models_first_layers_are_smoothed_for_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phipipe.models.checkpoint.LARGE_PARAMETERS", 10**6)
    steps = {step.name: step for step in planned(ON).steps}
    needs = {"source": "slice", "calibration": "calibration"}
    assert steps["slice-smooth"].needs == needs
    assert steps["slice-convert"].needs["source"] == "slice-smooth"
    assert steps["slice-baseline"].needs["source"] == "slice"
    assert steps["quantize"].needs["source"] == "smooth"


@pytest.mark.parametrize(
    ("config", "widened"),
    [
        ({"torch_dtype": "bfloat16"}, False),
        ({"torch_dtype": "float32"}, False),
        ({"torch_dtype": "float16"}, True),
        ({"dtype": "float16", "torch_dtype": None}, True),
        ({"torch_dtype": "bfloat16", "model_type": "gemma3_text"}, True),
    ],
)
def test_weights_are_stored_in_fp32_where_16_bits_cannot_hold_them(
    config: dict[str, Any], widened: bool
) -> None:
    checkpoint = phi3(config)
    made = smooth.of(checkpoint)
    assert (made.weight_bytes == 4 * made.parameters) == (
        widened or checkpoint.weight_bytes == 4 * checkpoint.parameters
    )
    assert (made.config != checkpoint.config) == widened
    assert (made.config.get(smooth.dtype_key(config)) == "float32") == (
        widened or config["torch_dtype"] == "float32"
    )


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("precision=fp32",), "rounds none"),
        (("quantize={rotate: quarot}",), "quantize.rotate"),
        (("source={path: SOURCE}",), "names none"),
        (("calibrate.text={builtin: stories}", "calibrate.window=64"), ""),
    ],
)
def test_what_makes_no_sense_is_refused(
    sets: tuple[str, ...], words: str, checkpoint: Path
) -> None:
    told = [one.replace("SOURCE", checkpoint.as_posix()) for one in sets]
    if not words:
        assert planned(ON, *told)
        return
    with pytest.raises(TargetError, match=words):
        planned(ON, *told)


@pytest.fixture(scope="session")
def folder(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the driver made and found out."""
    root = tmp_path_factory.mktemp("smooth")
    drive(python_of("torch"), DRIVER, root)
    return root


@pytest.fixture(scope="session")
def facts(folder: Path) -> dict[str, Any]:
    return read(folder / "facts.json")


@pytest.mark.parametrize("name", ["tiny-phi3", *LOUD, "shards", "fp16"])
def test_a_smoothed_checkpoint_computes_the_originals_very_numbers(
    facts: dict[str, Any], name: str
) -> None:
    found = section(facts, "architectures")[name]
    assert found["kld"] <= 1e-6
    assert found["equal"] or name in WIDENED, "powers of two change no binary number's digits"
    assert found["changed"], "some scale is not one"
    assert found["names"]
    assert found["unchanged"]
    assert set(found["missing"]) <= {"README.md"}
    assert found["dtypes"] == ["torch.float32" if name in WIDENED else "torch.bfloat16"]
    assert found["config"] == ({"torch_dtype": "float32"} if name in WIDENED else {})
    config = {"config.json"} if name in (*WIDENED, "shards") else set()  # written anew by its keys
    weights = {one for one in found["files"] if "model" in one}
    assert set(found["files"]) == weights | config


@pytest.mark.parametrize("name", LOUD)
def test_loud_numbers_of_every_kind_are_moved(facts: dict[str, Any], name: str) -> None:
    found = section(facts, "architectures")[name]
    unread = [n for n in found["linears"] if n not in found["changed"]]
    # behind an activation there is no place for scales
    assert {n.rpartition(".mlp.")[2] for n in unread} <= {"fc2.weight"}
    biased = {n for n in found["changed"] if n.endswith(".bias")}
    assert bool(biased) == (name in ("Phi-2", "Qwen2.5-0.5B"))


def test_rounding_a_model_with_outliers_loses_a_third_at_most(facts: dict[str, Any]) -> None:
    found = section(facts, "rounding")
    assert found["same"] <= 1e-6
    for group in ("32", "0"):  # 0: one scale for a whole row
        assert found[f"smooth {group}"] < found[f"plain {group}"] / 3


def test_the_same_text_gives_the_same_bytes(facts: dict[str, Any]) -> None:
    assert facts["reproducible"] is True


def test_activations_that_are_no_numbers_are_refused_by_name(facts: dict[str, Any]) -> None:
    kind, said, hint = facts["refusals"]
    assert kind == "SourceError"
    assert said.endswith("NaN or infinity reaches `model.layers.2.self_attn.qkv_proj`")
    assert hint


def test_a_smoothed_gguf_is_closer_and_its_package_says_so(shell: Shell, folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE, "utf-8")
    plain, awq = shell.run(recipe=path)
    kld = [build["evaluation"]["metrics"]["kld_mean"] for build in (plain, awq)]
    assert kld[1] < kld[0] / 2
    steps = [[step["name"] for step in build["steps"]] for build in (plain, awq)]
    assert ["smooth" in names for names in steps] == [False, True]
    package = shell.folder / awq["package"]
    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    assert manifest["scheme"] == "Q4_0, AWQ-smoothed"
    assert manifest["recipe"]["weights"] == {"smooth": "awq"}
    assert "Q4_0, AWQ-smoothed" in (package / "README.md").read_text("utf-8")
    shell("compare", package.parent, "--out", "board")
    assert "AWQ-smoothed" in (shell.folder / "board" / "board.md").read_text("utf-8")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("smooth-run"), toolchains)

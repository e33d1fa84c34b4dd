"""Where weights cannot be learned, the refusal says what can be done, and that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.planning import preparation, targets
from phipipe.planning.plan import Plan
from phipipe.recipe import loading

RECIPE = """\
name: x
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: onnxruntime
precision: int4
weights: {learn: gptq}
"""


def planned(tmp_path: Path, *sets: str) -> Plan:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE, "utf-8")
    (build,) = loading.load(path, options=backends.OptionsOf(), sets=sets)
    return preparation.prepare(build, elsewhere=True)


def refused(tmp_path: Path, *sets: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        planned(tmp_path, *sets)
    return caught.value


def advised(hint: str | None) -> list[str]:
    """What the ``--set`` options in ``hint`` set."""
    return re.findall(r"--set '?([^'`]+)'?`", hint or "")


@pytest.mark.parametrize("method", ["round", "search", "gptq", "signround"])
def test_an_npu_names_the_group_size_that_works(tmp_path: Path, method: str) -> None:
    npu = ("device=intel-npu", "backend=openvino", f"weights.learn={method}")
    error = refused(tmp_path, *npu)
    assert (
        "runs no learned weights with groups of 32, only with groups of 128 or a scale per row"
        in error.message
    )
    assert method in (error.hint or "")
    (change,) = advised(error.hint)
    plan = planned(tmp_path, *npu, change)
    assert "weights" in {step.name for step in plan.steps}


def test_a_backend_that_stores_none_names_what_the_device_has(tmp_path: Path) -> None:
    device, backend = "snapdragon-x-npu", "qnn"
    error = refused(tmp_path, f"device={device}", f"backend={backend}")
    others = re.findall(r"`(\w+)` \(`unit: ([\w-]+)`\)", error.hint or "")
    assert others
    for name, unit in others:
        planned(tmp_path, f"device={device}", f"backend={name}", f"unit={unit}")
    (change,) = advised(error.hint)
    assert yaml.safe_load(change.partition("=")[2]) == {"smooth": "awq"}
    plan = planned(tmp_path, f"device={device}", f"backend={backend}", change)
    assert "smooth" in {step.name for step in plan.steps}


def test_it_is_told_before_a_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("builtin: tiny-phi3", "path: nowhere"), "utf-8")
    with pytest.raises(TargetError, match="cannot store weights that are learned"):
        targets.checked(path, ["device=snapdragon-x-npu", "backend=qnn"])
    with pytest.raises(TargetError, match="runs no learned weights with groups of 64"):
        targets.checked(path, ["device=intel-npu", "backend=openvino", "weights.group_size=64"])
    with pytest.raises(TargetError, match="weights are learned at 4 bits"):
        targets.checked(path, ["precision=int8"])


@pytest.mark.parametrize("backend", ["onnxruntime", "llamacpp"])
def test_a_scale_per_row_is_for_those_that_store_it(tmp_path: Path, backend: str) -> None:
    asked = (f"backend={backend}", "weights.group_size=-1")
    error = refused(tmp_path, *asked)
    assert f"`{backend}` stores learned weights in groups" in error.message
    (change,) = advised(error.hint)
    planned(tmp_path, *asked, change)


@pytest.mark.parametrize("backend", ["onnxruntime", "llamacpp"])
def test_nor_may_a_map_ask_for_one_elsewhere(tmp_path: Path, backend: str) -> None:
    asked = "quantize={map: {lm_head: {bits: 4, group_size: -1}}}"
    error = refused(tmp_path, f"backend={backend}", asked)
    assert "weights are learned in groups of 32, 64, 128" in error.message


@pytest.mark.parametrize("backend", ["openvino", "torch", "litert"])
def test_learned_weights_may_have_a_scale_per_row(tmp_path: Path, backend: str) -> None:
    plan = planned(tmp_path, f"backend={backend}", "weights.group_size=-1")
    (learning,) = [step for step in plan.steps if step.name == "weights"]
    widths = learning.params["widths"]
    assert widths["layers.0.mlp.down_proj"] == [4, 768]  # the length of its rows
    assert widths["layers.0.mlp.gate_up_proj"] == [4, 256]


NPU_MAP = ("device=intel-npu", "backend=openvino", "weights.group_size=128")


@pytest.mark.parametrize(
    ("width", "hint"),
    [
        ("{bits: 8, group_size: 128}", "let `quantize.map` name embedding and head alone"),
        ("{bits: 4, group_size: 64}", "give it `group_size: 128` in `quantize.map`"),
    ],
)
@pytest.mark.parametrize("learn", ["gptq", "none"])
def test_a_map_that_the_unit_cannot_run_has_a_remedy(
    tmp_path: Path, width: str, hint: str, learn: str
) -> None:
    mapped = f'quantize={{map: {{"*.down_proj": {width}}}}}'
    error = refused(tmp_path, *NPU_MAP, f"weights.learn={learn}", mapped)
    assert hint in (error.hint or "")
    fixed = mapped.replace("bits: 8", "bits: 4").replace("64", "128")
    planned(tmp_path, *NPU_MAP, f"weights.learn={learn}", fixed)


@pytest.mark.parametrize(
    ("weights", "map_", "words"),
    [
        ("{learn: gptq}", '{"*": {bits: 16}}', "the map has all matrices in floats"),
        ("{learn: gptq, distil: true}", '{"layers.*": {bits: 16}}', "the map has all in floats"),
    ],
)
def test_a_map_that_leaves_nothing_to_learn_is_refused(
    tmp_path: Path, weights: str, map_: str, words: str
) -> None:
    sets = (f"weights={weights}", f"quantize={{map: {map_}}}")
    assert words in refused(tmp_path, *sets).message
    kept = map_.replace('"*"', '"layers.0.*"').replace("layers.*", "layers.0.*")
    planned(tmp_path, f"weights={weights}", f"quantize={{map: {kept}}}")


def test_a_map_of_all_matrices_needs_no_size_for_the_rest(tmp_path: Path) -> None:
    every = 'quantize={map: {"*": {bits: 4, group_size: 128}}}'
    planned(tmp_path, "device=intel-npu", "backend=openvino", every)

"""Every step's function can be imported where the step runs: one that needs another toolchain's
package is found here in seconds, not by a build."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
from testing import planned_steps, step_imports
from testing.drive import PATHS, drive

from phipipe import backends, steps

HERE = "phipipe's own"  # where light steps run
CODECS = [name for name in backends.names() if backends.load(name).codec]
EYES = [name for name in backends.names() if backends.load(name).vision]
TORCH = ("torch",)
# Steps that plans of the embedded model do not have.
RARE: Mapping[str, tuple[str, ...]] = {
    "algorithms/distil": TORCH,
    "algorithms/gptq": ("olive",),
    "algorithms/learn": TORCH,
    "algorithms/rotate": ("olive",),
    "algorithms/sensitivity": TORCH,
    "algorithms/smooth": TORCH,
    "evaluate/baseline_pictures": TORCH,
    "evaluate/change_by_adapter": TORCH,
    "evaluate/codec_errors": tuple(backends.load(name).toolchain for name in CODECS),
    "evaluate/compare_pictures": tuple(backends.load(name).toolchain for name in EYES),
    "evaluate/ask_original": TORCH,
    "evaluate/round": TORCH,
    "evaluate/ask_build": tuple(backends.load(name).toolchain for name in backends.names()),
    "hub/fetch": (HERE,),
    "llamacpp/imatrix": TORCH,
    "models/check_tokenizer": TORCH,
    "models/cut_layers": (HERE,),
    "models/mend_tokenizer": (HERE,),
    "models/merge_adapter": TORCH,
    "models/unpack_gguf": TORCH,
    "models/widen": TORCH,
    "onnxruntime/vision": ("onnxruntime",),
    "openvino/vision": ("openvino",),
    "vision/cut_language": TORCH,
    "vision/draw_pictures": TORCH,
    "vision/merge_lora": TORCH,
}
TOOLCHAINS = sorted({backends.load(name).toolchain for name in backends.names()} | {"olive"})
NAMES = {
    *steps.ADDRESSES,
    *(f"{name}/{verb}" for name in backends.names() for verb in steps.own_steps(name)),
}


@cache
def places() -> Mapping[str, list[str]]:
    """Toolchain → the steps that run in it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for step in planned_steps.all_steps():
        found[step.toolchain or HERE].add(step.runs)
    for name, toolchains in RARE.items():
        for toolchain in toolchains:
            found[toolchain].add(name)
    return {toolchain: sorted(names) for toolchain, names in found.items()}


def failures(python: Path | str, names: list[str]) -> dict[str, str]:
    said = drive(Path(python), step_imports.__file__, *names)
    told: dict[str, str] = json.loads(said.splitlines()[-1])  # some packages print on import
    return told


def test_no_step_is_left_out() -> None:
    assert {name for names in places().values() for name in names} == NAMES
    assert places().keys() == {HERE, *TOOLCHAINS}


def test_light_steps_import_in_phipipes_own_environment() -> None:
    assert failures(sys.executable, places()[HERE]) == {}


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_steps_import_in_their_toolchain(python_of: Callable[[str], Path], toolchain: str) -> None:
    assert failures(python_of(toolchain), places()[toolchain]) == {}


def test_an_import_of_another_toolchain_is_found(tmp_path: Path) -> None:
    """Also one inside a function that the step's function calls, and in no other."""
    (tmp_path / "made_up.py").write_text(
        "STEPS = {'good': 'made_up:good', 'bad': 'made_up:bad'}\n"
        "def good(i, o, p): import json\n"
        "def bad(i, o, p): _inner()\n"
        "def _inner(): from not_there import thing\n",
        "utf-8",
    )
    told = drive(
        Path(sys.executable),
        step_imports.__file__,
        *("made_up/good", "made_up/bad"),
        PYTHONPATH=os.pathsep.join((str(tmp_path), PATHS)),
    )
    assert json.loads(told) == {"made_up/bad": "No module named 'not_there'"}

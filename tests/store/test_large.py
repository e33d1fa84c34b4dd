"""Large models take other steps than small ones. Here the embedded model counts as large, so that
both can be compared.

A large model's conversion is proved on its first layers, and nothing that is only read once is
written out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testing.plans import planned as from_recipe

from phipipe.cli.listeners import Silent
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.hub import take
from phipipe.models import checkpoints, first_layers, tensor_places
from phipipe.package.package import verify
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.store.store import Store

TINY = take.BUILTIN_MODELS["tiny-phi3"]
RECIPE = """
name: large
source: {builtin: tiny-phi3}
device: DEVICE
backend: BACKEND
precision: int4
weights: none
evaluate: {text: {builtin: stories}, tokens: 1024, window: 256}
measure: {prompt_tokens: 32, new_tokens: 4, repetitions: 1}
"""
DEVICES = {
    "onnxruntime": "cpu-x86_64",
    "openvino": "intel-cpu",
    "llamacpp": "cpu-x86_64",
    "mlx": "mac-16gb",
}
DEVICES |= {"litert": "android-phone", "qnn": "snapdragon-x-npu", "torch": "cpu-x86_64"}


def planned(folder: Path, backend: str) -> Plan:
    path = folder / f"{backend}.yaml"
    path.write_text(RECIPE.replace("DEVICE", DEVICES[backend]).replace("BACKEND", backend), "utf-8")
    return from_recipe(path=path)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phipipe.models.checkpoint.LARGE_PARAMETERS", 10**6)


@pytest.mark.parametrize("backend", sorted(DEVICES))
def test_conversions_are_proved_on_the_first_layers_before_anything_else_starts(
    tmp_path: Path, large: None, backend: str
) -> None:
    made = {step.name: step for step in planned(tmp_path, backend).steps}
    assert "parity" not in {need for step in made.values() for need in step.needs.values()} - {
        "parity"
    }
    if "check-parity" not in made:
        assert backend == "torch"  # int4 in one step: there is no conversion
        return
    assert made["parity"].needs["baseline"] == "slice-baseline"
    assert made["parity"].needs["artifact"].startswith("slice-")
    assert made["check-parity"].params["layers"] == first_layers.LAYERS
    assert made["slice-baseline"].needs == {"source": "slice", "text": "text"}
    assert made["slice-baseline"].params["answers"] is False  # two layers have nothing to say
    own = [
        step
        for name, step in made.items()
        if name in ("convert", "quantize", "evaluate", "measure", "emulate")
    ]
    assert own
    assert all("check-parity" in step.after for step in own)


def test_fix_ups_of_the_first_layers_are_made_for_those(large: None, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8")) | {"sliding_window": 1000}
    (checkpoint / "config.json").write_text(json.dumps(config), "utf-8")
    sets = (f"source={{path: {checkpoint.as_posix()}}}", "evaluate.text={builtin: stories}")
    steps = {step.name: step for step in from_recipe(*sets).steps}
    assert (
        len(steps["convert"].params["config_patch"]["layer_types"]) == config["num_hidden_layers"]
    )
    assert len(steps["slice-convert"].params["config_patch"]["layer_types"]) == first_layers.LAYERS


@pytest.mark.parametrize("backend", ["llamacpp", "mlx", "onnxruntime", "openvino"])
def test_no_unquantized_copy_of_a_large_model_is_written(
    tmp_path: Path, large: None, backend: str
) -> None:
    written = sum(
        s.output_bytes
        for s in planned(tmp_path, backend).steps
        if s.name in ("convert", "quantize")
    )
    assert written < 2**26 + checkpoints.read(TINY).weight_bytes


def test_the_slice_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "slice"
    out.mkdir()
    first_layers.cut({"source": TINY}, out, {"layers": 2})
    whole, part = tensor_places.places(TINY), tensor_places.places(out)
    read = checkpoints.read(out)
    assert read.layers == 2
    assert set(whole) - set(part) == {
        name
        for name in whole
        if ".layers." in name and ".layers.0." not in name and ".layers.1." not in name
    }
    for name, place in part.items():
        source = whole[name]
        theirs = (TINY / source.file).read_bytes()[
            source.offset : source.offset + source.size_bytes
        ]
        assert (out / place.file).read_bytes()[
            place.offset : place.offset + place.size_bytes
        ] == theirs
    estimate = first_layers.of(checkpoints.read(TINY))
    assert abs(estimate.parameters - read.parameters) < 0.01 * read.parameters
    assert (out / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


def test_a_list_of_layer_types_is_cut_too(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    types = ["sliding_attention", "full_attention"] * 3
    (checkpoint / "config.json").write_text(
        json.dumps(config | {"layer_types": types[: config["num_hidden_layers"]]})
    )
    first_layers.cut({"source": checkpoint}, tmp_path, {"layers": 2})
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["layer_types"] == types[:2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "llamacpp", "mlx"])
def ends(request: pytest.FixtureRequest, work: Path, toolchains: Path) -> tuple[Outcome, Outcome]:
    """How the build ends that takes the model as small, and the one that takes it as large."""
    settings, store = Settings(cache=work / "cache", toolchains=toolchains), Store(work / "cache")
    with pytest.MonkeyPatch.context() as patch:
        small = planned(work, request.param)
        patch.setattr("phipipe.models.checkpoint.LARGE_PARAMETERS", 10**6)
        made = planned(work, request.param)
        large = replace(made, build=replace(made.build, name=f"{request.param}-large"))
        first, second = dispatch.attempt(
            [small, large], store, settings, Silent(), Manner(out=work / "packages", jobs=2)
        )
    return first, second


def test_a_large_model_becomes_the_same_file(ends: tuple[Outcome, Outcome]) -> None:
    small, large = ends
    assert small.error is None
    assert large.error is None
    assert small.results["quantize"].stored.digest == large.results["quantize"].stored.digest
    assert large.package is not None
    assert verify(large.package) == []
    parity: Any = json.loads((large.package / "manifest.json").read_text("utf-8"))["fidelity"][
        "parity"
    ]
    assert parity["layers"] == first_layers.LAYERS
    assert 0 <= parity["kld_mean"] <= parity["limit"]
    assert f"of the first {first_layers.LAYERS} layers was compared" in (
        large.package / "README.md"
    ).read_text("utf-8")

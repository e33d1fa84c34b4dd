"""Finished packages measured again, on the device that they are for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from testing import hostile_packages, small_package

from phipipe import hardware
from phipipe.errors import SourceError, TargetError
from phipipe.execution import finished
from phipipe.hub import take
from phipipe.package import original as package_original
from phipipe.recipe.source import Source
from phipipe.store.store import Store


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package for an x86-64 CPU, on one."""
    monkeypatch.setattr(hardware, "architecture", lambda: "x86_64")
    device = {"title": "CPU (x86-64)", "architecture": "x86_64"}
    return small_package.written(tmp_path / "small", device=device)


def test_a_package_is_measured_with_what_lies_in_it_alone(small: Path) -> None:
    plan = finished.plan_measurement(small, print)
    assert [step.name for step in plan.steps] == ["evaluate", "measure"]
    assert all(not step.needs.keys() & {"source", "baseline"} for step in plan.steps)
    inputs = {name: at.folder for step in plan.steps for name, at in step.outside.items()}
    assert inputs == {"artifact": small, "baseline": small / "reference"}
    assert (plan.api, plan.on_target) == ("cpu", "true")


def test_another_processor_takes_no_figures_of_the_devices(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "architecture", lambda: "arm64")
    with pytest.raises(
        TargetError, match=r"processor is arm64, and that of .* is x86_64"
    ) as refused:
        finished.plan_measurement(small, print)
    assert f"phipipe eval {small}" in str(refused.value.hint)


def test_a_package_without_reference_data_is_built_again(small: Path) -> None:
    shutil.rmtree(small / "reference")
    with pytest.raises(SourceError, match=r"was changed|missing"):
        finished.plan_measurement(small, print)
    hostile_packages.sealed(small)
    with pytest.raises(SourceError, match="has no reference data"):
        finished.plan_measurement(small, print)


def test_a_package_is_measured_as_it_runs_where_that_differs(tmp_path: Path, small: Path) -> None:
    assert finished.plan_measurement(small, print).knob == ""
    packed = hostile_packages.laid_out(small, tmp_path / "openvino", "openvino")
    plan = finished.plan_measurement(packed, print)
    assert [step.name for step in plan.steps] == ["evaluate", "run-evaluate", "measure"]
    run = plan.steps[1]
    assert run.params == {"backend": "openvino", "tokens": 4096}
    assert run.outside.keys() == {"artifact", "baseline"}
    assert "8-bit activations" in (plan.knob or "")


def test_a_package_is_evaluated_with_a_quantized_cache_beside_its_own(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = take.original(Source(builtin="tiny-phi3"), tmp_path)
    monkeypatch.setattr(package_original, "find", lambda *words: original)
    packed = hostile_packages.laid_out(small, tmp_path / "openvino", "openvino")
    store = Store(tmp_path / "cache")
    told = {"text": None, "tokens": 512, "source": None}
    plain, kept = (
        {s.name: s for s in finished.plan_evaluation(packed, store, print, **told, kv=kv).steps}
        for kv in (None, "q4")
    )
    assert kept.keys() - plain.keys() == {"kv-evaluate"}
    assert kept["kv-evaluate"].params == {"backend": "openvino", "tokens": 512, "cache": "q4"}
    assert all(kept[name] == step for name, step in plain.items())
    with pytest.raises(TargetError, match="`onnxruntime` cannot keep the keys and values"):
        finished.plan_evaluation(small, store, print, **told, kv="q4")

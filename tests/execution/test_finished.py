"""Finished packages measured again, on the device that they are for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from testing import hostile_packages, small_package

from phipipe import hardware
from phipipe.errors import SourceError, TargetError
from phipipe.execution import finished


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package for an x86-64 CPU, on one."""
    monkeypatch.setattr(hardware, "architecture", lambda: "x86_64")
    device = {"title": "CPU (x86-64)", "architecture": "x86_64"}
    return small_package.written(tmp_path / "small", device=device)


def test_a_package_is_measured_with_what_lies_in_it_alone(small: Path) -> None:
    plan = finished.plan_measurement(small)
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
        finished.plan_measurement(small)
    assert f"phipipe eval {small}" in str(refused.value.hint)


def test_a_package_without_reference_data_is_built_again(small: Path) -> None:
    shutil.rmtree(small / "reference")
    with pytest.raises(SourceError, match=r"was changed|missing"):
        finished.plan_measurement(small)
    hostile_packages.sealed(small)
    with pytest.raises(SourceError, match="has no reference data"):
        finished.plan_measurement(small)

"""What steps in PyTorch compute on, and that it changes no figure: on a GPU that is pretended
everywhere, on a real one where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import facts_of, section
from testing.torch_names import ON_CPU, STEPS

DRIVER = Path(__file__).parent / "compute_driver.py"
SAME = 1e-4  # what figures may be off by, of their size


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("compute"))


@pytest.mark.parametrize("name", STEPS)
def test_all_of_a_step_is_on_one_device_and_its_figures_stay(
    facts: dict[str, Any], name: str
) -> None:
    found = section(facts, "pretended")[name]
    assert found["off"] <= SAME
    if name in ON_CPU:
        assert (found["usage"], found["operations"]) == ({}, 0)
    else:
        assert found["usage"] == {"gpu": "Pretended 1", "peak_gpu_bytes": 4096}
        assert found["operations"] > 500


@pytest.mark.parametrize("name", STEPS)
def test_figures_of_a_real_gpu_are_those_of_the_cpu(facts: dict[str, Any], name: str) -> None:
    found = section(facts, "gpu")
    if not found:
        pytest.skip("this machine has no NVIDIA GPU that the toolchain's PyTorch can use")
    if name == "gptq":  # it carries the last digit of a sum on from matrix to matrix
        assert found[name]["differ"] < 0.02
    else:
        assert found[name]["off"] <= SAME
    assert bool(found[name]["usage"]) is (name not in ON_CPU)


def test_the_pretended_gpu_refuses_what_a_real_one_would(facts: dict[str, Any]) -> None:
    assert "given tensors on `lazy` and on the CPU" in facts["mixed"]


def test_a_gpu_is_taken_where_it_has_what_the_step_needs(facts: dict[str, Any]) -> None:
    found = section(facts, "choices")
    assert found.pop("cpu") == "cpu"
    taken = {name for name, unit in found.items() if unit == "lazy"}
    assert taken == {
        "learns False, doubles True, room True",
        "learns False, doubles False, room True",
        "learns True, doubles True, room True",
    }


def test_a_cuda_that_does_not_work_is_none(facts: dict[str, Any]) -> None:
    found = section(facts, "answers")
    if not found:
        pytest.skip("CUDA works here")
    assert found["broken"] == "cpu"
    kind, text, hint = found["asked"]
    assert kind == "ToolchainError"
    assert "no NVIDIA GPU that steps can compute on: " in text
    assert "PHIPIPE_COMPUTE=cpu" in hint
    assert [one[0] for one in found["none"]] == ["ToolchainError"] * 2
    assert "PHIPIPE_COMPUTE is `gpu`" in found["word"][1]


def test_products_that_are_not_exact_are_refused(facts: dict[str, Any]) -> None:
    found = section(facts, "answers")
    if not found:
        pytest.skip("CUDA works here")
    unit, problem = found["tf32"]
    assert unit == "cpu"
    assert "its products in fp32 are off by" in problem
    assert facts["exact"] < 5e-6


def test_products_stay_fp32(facts: dict[str, Any]) -> None:
    assert facts["precise"] == [False, "highest"]

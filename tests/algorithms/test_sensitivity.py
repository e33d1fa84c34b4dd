"""Sensitivity: what it predicts is what noise costs, and what a whole model's gradients say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import facts_of, section

DRIVER = Path(__file__).parent / "sensitivity_driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("sensitivity"))


def test_noise_costs_about_what_was_predicted(facts: dict[str, Any]) -> None:
    about = section(facts, "about")
    assert about["tokens"] == 1024
    logs = [math.log(one["measured"] / one["predicted"]) for one in about["checks"]]
    assert len(logs) == 8
    assert abs(sum(logs) / len(logs)) < math.log(2.5)  # 256 tokens hear the noise
    assert all(abs(one) < math.log(4) for one in logs)


@pytest.mark.parametrize("case", ["shapes", "tied"])
def test_every_matrix_is_measured(facts: dict[str, Any], case: str) -> None:
    stored, wanted = facts[case]
    assert stored == wanted


def test_a_second_run_measures_the_same(facts: dict[str, Any]) -> None:
    assert facts["twice"] is True


def test_gradients_layer_by_layer_are_those_of_the_whole_model(facts: dict[str, Any]) -> None:
    by_hand, layered = facts["by_hand"]
    assert layered == pytest.approx(by_hand, rel=0.25)


def test_what_nobody_hears_costs_nothing(facts: dict[str, Any]) -> None:
    unheard = section(facts, "unheard")
    assert unheard["mlp.gate_up_proj"] == 0
    assert unheard["mlp.down_proj"] > 0


def test_activations_that_are_no_numbers_are_told_by_layer(facts: dict[str, Any]) -> None:
    kind, message, _ = facts["nan"]
    assert kind == "StepFailed"
    assert "layer 1" in message

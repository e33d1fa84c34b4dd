"""Adapters of many kinds, made and merged by PEFT itself, beside phipipe's merge of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uv
from testing.drive import PATHS, drive, read, section

DRIVER = Path(__file__).parent / "merge_driver.py"
PEFT = ("peft>=0.17,<0.22", "accelerate>=1", "psutil>=6")
CASES = (
    *("plain", "rslora", "dora", "patterns", "layers", "linear", "saved", "table", "longer"),
    *("apart", "apart, dora", "tied", "tied, table", "tied, saved", "tied, longer"),
)
FEW = ("plain", "dora", "nan")  # that every submission is tested with
UNTIED = ("tied, table", "tied, saved")
LONGER = ("longer", "tied, longer")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compare(
    tmp_path_factory: pytest.TempPathFactory, python_of: Callable[[str], Path]
) -> Callable[..., dict[str, Any]]:
    """What the driver finds of the cases that are named, with PEFT in a folder of its own beside
    the toolchain."""
    root, python = tmp_path_factory.mktemp("merge"), python_of("torch")
    peft = root / "peft"
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--target", peft]
    subprocess.run([*command, "--python", python, *PEFT], check=True)

    def compared(*names: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("cases")
        drive(python, DRIVER, folder, *names, PYTHONPATH=os.pathsep.join((PATHS, str(peft))))
        return read(folder / "facts.json")

    return compared


@pytest.fixture(scope="module")
def few(compare: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return compare(*FEW)


@pytest.fixture(scope="module")
def facts(compare: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return compare()


@pytest.mark.parametrize("case", ["plain", "dora"])
def test_a_merge_is_pefts_own_and_the_model_that_was_trained(
    few: dict[str, Any], case: str
) -> None:
    found = section(few, case)
    assert found["ulps"] <= 2.5
    assert not found["missing"]
    assert found["gap"] < 1e-3 * found["moved"], found


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_pefts_own_to_the_rounding_of_16_bits(facts: dict[str, Any], case: str) -> None:
    found = section(facts, case)
    assert found["ulps"] <= 2.5
    assert not found["missing"]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_is_the_one_that_was_trained(facts: dict[str, Any], case: str) -> None:
    found = section(facts, case)
    assert found["gap"] < 1e-3 * found["moved"], found
    assert found["tied"] is (case.startswith("tied") and case not in UNTIED)
    plain = section(facts, "plain")["vocabulary"]
    assert found["vocabulary"] == plain + (8 if case in LONGER else 0)


@pytest.mark.nightly
@pytest.mark.parametrize("case", ["apart", "plain"])
def test_adapters_of_joined_and_of_separate_projections_are_the_same(
    facts: dict[str, Any], case: str
) -> None:
    assert section(facts, "joined")[case]


def test_an_adapter_with_nan_is_refused_by_the_name_of_its_tensor(few: dict[str, Any]) -> None:
    kind, message, hint = few["nan"]
    assert (kind, "the adapter has NaN" in message, "lora_A" in message) == (
        "SourceError",
        True,
        True,
    )
    assert hint


@pytest.mark.nightly
def test_the_bytes_do_not_depend_on_the_number_of_threads(facts: dict[str, Any]) -> None:
    assert facts["again"] is True

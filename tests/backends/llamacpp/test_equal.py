"""llama.cpp: what is written tensor by tensor is what llama.cpp makes of the whole conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive, read, section

DRIVER = Path(__file__).parent / "equal_driver.py"
SOURCES = ("tiny", "rows of 192", "shared heads", "tied", "rows of 400", "Phi-2", "mixed", "small")


@pytest.fixture(scope="session")
def made(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gguf-equal")
    drive(python_of("torch"), DRIVER, folder, "torch")
    return folder, section(read(folder / "torch.json"), "made")


@pytest.fixture(scope="session")
def found(made: tuple[Path, dict[str, Any]], python_of: Callable[[str], Path]) -> dict[str, Any]:
    drive(python_of("llamacpp"), DRIVER, made[0], "llamacpp")
    return read(made[0] / "llamacpp.json")


def test_every_matrix_is_rows_of_the_checkpoints(made: tuple[Path, dict[str, Any]]) -> None:
    kept = made[1]["kept"]
    assert len(kept) == len(SOURCES) + 2
    assert set(map(tuple, kept.values())) == {()}


def test_files_in_floats_are_the_converters(found: dict[str, Any]) -> None:
    assert section(found, "floats")["wrong"] == []


@pytest.mark.parametrize("name", SOURCES)
def test_files_are_llamacpps_byte_by_byte(found: dict[str, Any], name: str) -> None:
    assert section(found, name)["wrong"] == []


def test_options_and_maps_change_both_alike(found: dict[str, Any]) -> None:
    assert section(found, "options")["wrong"] == []


@pytest.mark.parametrize("name", ["rows of 192", "shared heads", "tied"])
def test_each_tensor_has_the_type_that_llamacpp_chooses_for_the_whole(
    found: dict[str, Any], name: str
) -> None:
    assert section(found, f"types of {name}")["wrong"] == []

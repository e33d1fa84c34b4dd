"""Our rounding is NNCF's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import facts_of

DRIVER = Path(__file__).parent / "rounding_driver.py"


@pytest.fixture(scope="module")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("openvino"), DRIVER, tmp_path_factory.mktemp("rounding"))


def test_codes_scales_and_zero_points_are_those_of_nncf(facts: dict[str, Any]) -> None:
    assert facts["differing"] == []


def test_large_matrices_of_even_rows_are_rounded_here(facts: dict[str, Any]) -> None:
    assert facts["compared"] == 108

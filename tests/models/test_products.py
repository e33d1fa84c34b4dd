"""Products of matrices are the same by every library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from testing.drive import facts_of, section

DRIVER = Path(__file__).parent / "products_driver.py"


@pytest.fixture(scope="session")
def worst(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    facts = facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("products"))
    return section(facts, "worst")


@pytest.mark.parametrize("kind", ["plain", "pairs", "gradients"])
def test_a_product_is_that_of_fp64(worst: dict[str, float], kind: str) -> None:
    assert worst[kind] <= 1e-5  # of the largest number

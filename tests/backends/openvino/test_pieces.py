"""NNCF rounds rows by themselves: some at a time come to what all of them do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from testing.drive import facts_of

DRIVER = Path(__file__).parent / "pieces_driver.py"


def test_rows_in_pieces_are_the_rows_of_the_whole(
    python_of: Callable[[str], Path], tmp_path: Path
) -> None:
    assert facts_of(python_of("openvino"), DRIVER, tmp_path)["differing"] == []

"""The folders that come with phipipe, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.places import RECIPES

from phipipe.errors import StoreError
from phipipe.files import shipped


def test_a_checkout_has_its_recipes_at_the_top() -> None:
    assert shipped.folder("recipes") == RECIPES


def test_an_installed_phipipe_has_them_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "site-packages" / "phipipe" / "shipped" / "docs"
    inside.mkdir(parents=True)
    (tmp_path / "site-packages" / "docs").mkdir()  # some other project's: not ours
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "site-packages" / "phipipe")
    assert shipped.folder("docs") == inside


def test_a_phipipe_without_its_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "phipipe")
    with pytest.raises(StoreError, match="no folder `recipes`"):
        shipped.folder("recipes")

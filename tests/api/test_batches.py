"""Batches from Python. Steps here are cheap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import light_builds, recipes
from testing.light_builds import FIGURES, TROUBLE

import phipipe
from phipipe import Package, RecipeError, Wanted, run_batch


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    light_builds.CALLS.clear()
    FIGURES.clear()
    TROUBLE.clear()
    light_builds.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        recipes.write(tmp_path / "recipes", name, f"tags: [{name}]\n")
    return tmp_path / "recipes"


def test_a_batch_builds_all_recipes_of_a_folder(folder: Path) -> None:
    batch = run_batch(folder)
    assert batch.states == {"one": "built", "two": "built"}
    assert (batch.exit_code, batch.error) == (0, None)
    assert batch.to_dict() == json.loads(Path("batch/batch.json").read_text("utf-8"))
    assert batch.board_page.is_file()
    assert run_batch(folder).states == {"one": "cached", "two": "cached"}
    assert repr(batch) == "<Batch one: built, two: built>"
    assert "2 builds: 2 built" in str(batch)


def test_a_batch_takes_what_is_wanted(folder: Path) -> None:
    assert run_batch(folder, wanted=Wanted(tags=["two"])).states == {"two": "built"}
    with pytest.raises(RecipeError, match="nothing is chosen"):
        run_batch(folder, wanted=Wanted(names=["three"]))


def test_failures_leave_the_others_and_are_raised_on_request(folder: Path) -> None:
    TROUBLE.update({"one": "gated"})
    batch = run_batch(folder)
    assert batch.states == {"one": "gated", "two": "built"}
    assert batch.exit_code == 7
    with pytest.raises(phipipe.GateFailed):
        batch.check()
    assert "gate failed" in batch._repr_html_()


def test_the_accepted_version_is_opened_by_the_builds_folder(folder: Path) -> None:
    run_batch(folder)
    package = Package.open("batch/one")
    assert package.path == Path("batch/one") / Path("batch/one/latest").read_text().strip()


def test_a_batch_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TROUBLE.update({"one": "failed", "two": "refused"})
    assert run_batch(folder).states == {"one": "failed", "two": "refused"}
    assert capfd.readouterr() == ("", "")


def test_a_batch_without_recipes_is_refused() -> None:
    with pytest.raises(RecipeError, match="a batch needs recipes"):
        run_batch()
    Path("empty").mkdir()
    with pytest.raises(RecipeError, match="no recipes in"):
        run_batch("empty")

"""What `plan` and `batch --dry-run` say beforehand: steps, costs, times. Nothing changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from testing import documents
from testing.places import QUICKSTART, RECIPES
from testing.shell import Run

from phipipe.store import keys
from phipipe.store.store import Store

SECOND = """
name: second
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int8
evaluate: {text: {builtin: stories}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "recipes"
    made.mkdir()
    shutil.copy(QUICKSTART, made / "quickstart.yaml")
    (made / "second.yaml").write_text(SECOND, "utf-8")
    return made


def test_a_folder_is_planned_with_one_line_a_build_and_shared_steps_once(
    run: Run, folder: Path
) -> None:
    code, out, err = run("plan", folder)
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][0] == "build"
    assert [row[0] for row in rows[1:3]] == ["quickstart", "second"]
    assert "2 builds, 17 steps will run, shared ones once, writing about" in out
    assert "how long that takes, no earlier run tells" in out
    assert run("plan", folder / "quickstart.yaml", folder / "second.yaml")[1] == out


def test_of_several_recipes_a_wrong_one_does_not_hide_the_others(run: Run, folder: Path) -> None:
    (folder / "wrong.yaml").write_text("name: wrong\n", "utf-8")
    code, out, err = run("plan", folder)
    assert code == 2
    assert "quickstart" in out
    assert "wrong.yaml" in err
    code, out, err = run("plan", folder, "--json")
    assert code == 2
    told = documents.fits(["plan"], out)
    assert [one["name"] for one in told] == ["quickstart", "second"]


def test_overrides_hold_for_every_recipe_of_a_folder(run: Run, folder: Path) -> None:
    told = json.loads(run("plan", folder, "--set", "precision=fp32", "--json")[1])
    assert [one["precision"] for one in told] == ["fp32", "fp32"]


def test_variants_are_chosen_of_one_recipe_alone(run: Run, folder: Path) -> None:
    code, _, err = run("plan", folder, "--only", "x")
    assert code == 2
    assert "--only names variants of one recipe" in err


def test_an_empty_folder_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, _, err = run("plan", "none")
    assert code == 2
    assert "no recipes in `none`" in err


def test_a_plan_says_how_long_steps_took_before(run: Run, own_cache: Path) -> None:
    """The record of a text that was taken, and of one that is like it."""
    first = json.loads(run("plan", QUICKSTART, "--json")[1])[0]
    assert first["seconds"] is None
    assert all(step["seconds"] is None for step in first["steps"])
    store, made = Store(own_cache), own_cache / "made"
    with store.session():
        made.mkdir()
        (made / "evaluation.txt").write_text("x" * 5000)
        record = {
            "format": keys.FORMAT, "runs": "hub/take", "version": 0, "params": {}, "inputs": {},
            "tools": {}, "step": "text", "recipe": "other", "usage": {"seconds": 90.0},
        }  # fmt: skip
        store.commit("ab" * 32, made, record)
    told = json.loads(run("plan", QUICKSTART, "--json")[1])[0]
    steps = {step["name"]: step for step in told["steps"]}
    assert (steps["text"]["seconds"], steps["text"]["earlier"]) == (90.0, 1)
    assert told["seconds"] == 90.0
    assert steps["convert"]["seconds"] is None
    _, out, _ = run("plan", QUICKSTART)
    assert "at least 2 min, from 1 earlier result; no earlier run tells of `source`" in out


def test_a_dry_run_of_a_batch_tells_all_and_changes_nothing(
    run: Run, folder: Path, own_cache: Path, tmp_path: Path
) -> None:
    (folder / "wrong.yaml").write_text("name: wrong\n", "utf-8")
    code, out, err = run("batch", folder, "--dry-run", "--json")
    assert code == 2
    told = documents.fits(["batch"], out)
    assert [one["name"] for one in told["builds"]] == ["quickstart", "second", "wrong"]
    assert told["steps_to_run"] == 17
    assert told["seconds"] is None
    assert told["builds"][0]["steps"] == told["builds"][0]["steps_to_run"] == 12
    assert not told["builds"][0]["cached"]
    assert told["builds"][2]["error"]["kind"] == "RecipeError"
    assert "wrong would be refused:" in err
    assert not (tmp_path / "batch").exists()
    assert not list((own_cache / "objects").iterdir())
    assert not (own_cache / "runs").exists()
    code, out, _ = run("batch", folder, "--name", "second", "--dry-run")
    assert "second" in out


def test_a_dry_run_chooses_as_the_batch_does(run: Run) -> None:
    code, out, err = run("batch", RECIPES, "--name", "board-torch-*", "--dry-run")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:5]] == [
        f"board-torch-{precision}" for precision in ("fp32", "fp16", "int8", "int4")
    ]

"""What `tune` asks for and where it writes: all that is known before a step runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.plans import planned
from testing.shell import Run

import phipipe
from phipipe.api import building, tuning, workplace
from phipipe.cli.listeners import Silent
from phipipe.errors import PhipipeError, RecipeError
from phipipe.execution.results import Outcome
from phipipe.planning.plan import Plan
from phipipe.tuning import aims

RECIPE = """\
name: small
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: llamacpp
precision: int4
evaluate: {text: {builtin: stories}, tokens: 512}
"""


@given(st.floats() | st.integers())
def test_bits_are_a_number_that_a_file_can_have(bits: float) -> None:
    if math.isfinite(bits) and 1 <= bits <= 16:
        assert aims.asked(None, bits, gates=False, builds=4).bits == bits
        return
    with pytest.raises(RecipeError, match="bits for a weight"):
        aims.asked(None, bits, gates=False, builds=4)


@given(st.text(max_size=30))
def test_a_size_is_bytes_or_refused(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert aims.size_of(text) >= 1


@pytest.mark.parametrize(
    ("size", "bits", "gates"), [("1GiB", 4.0, False), ("", 4.0, False), (None, 4.0, True)]
)
def test_two_aims_exclude_each_other(size: str | None, bits: float, gates: bool) -> None:
    with pytest.raises(RecipeError, match="exclude each other"):
        aims.asked(size, bits, gates=gates, builds=4)


@pytest.mark.parametrize(("size", "bits"), [(3, None), (b"3MB", None), (None, "4"), (None, True)])
def test_other_kinds_of_values_are_told(size: object, bits: object) -> None:
    with pytest.raises(TypeError, match="give one such as"):
        aims.asked(size, bits, gates=False, builds=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.html", "x", "no/x.yaml", "there.yaml", "page.yaml"])
def test_a_place_that_will_not_do_is_refused_before_anything_runs(
    run: Run, tmp_path: Path, name: str
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, "utf-8")
    (tmp_path / "there.yaml").write_text("mine", "utf-8")
    (tmp_path / "page.html").write_text("mine", "utf-8")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, _, err = run("tune", tmp_path / "r.yaml", "--bits", "5", "--write", tmp_path / name)
    assert code == 2
    assert "--write" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_is_wrong_with_any_variant_is_told_before_the_first_one_starts(
    run: Run, tmp_path: Path
) -> None:
    rows = "matrix:\n  - {name: a}\n  - {name: b, precision: fp16}\n"
    (tmp_path / "r.yaml").write_text(RECIPE + rows, "utf-8")
    words = ("tune", tmp_path / "r.yaml", "--bits", "5", "--write", tmp_path / "new.yaml")
    code, out, err = run(*words)
    assert code == 3
    assert "int4 builds" in err
    assert "step" not in out
    assert not (tmp_path / "new.yaml").exists()


def test_files_that_are_tried_keep_what_they_share(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []

    def attempt(command: str, plans: Sequence[Plan], *_: object) -> list[Outcome]:
        seen.extend(plans)
        return [Outcome(plan=plan) for plan in plans]

    monkeypatch.setattr(building, "attempt", attempt)
    made = planned("cache.keep=artifacts")
    place = workplace.of_user(workplace.silent)
    tuning._attempting(place, lambda plans: Silent(), workplace.silent)(made)
    assert [plan.build.recipe.cache.keep for plan in seen] == ["all"]
    assert seen[0].steps == made.steps


def test_a_recipe_that_was_read_takes_no_sets(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, "utf-8")
    recipe = phipipe.Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(PhipipeError, match="read already"):
        phipipe.tune(recipe, bits=5, sets=["precision=fp16"])


def test_the_page_lies_beside_the_recipe(tmp_path: Path) -> None:
    assert tuning.page_of(tmp_path / "a.b.yaml") == tmp_path / "a.b.html"

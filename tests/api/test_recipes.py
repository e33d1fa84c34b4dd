"""Recipes that Python reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing import recipes
from testing.places import QUICKSTART, RECIPES

from phipipe import Recipe, RecipeError

MATRIX = "matrix:\n- {precision: int8}\n- {name: small, precision: int4}\n"


def test_a_recipe_file_is_read_into_its_builds() -> None:
    recipe = Recipe.load(str(QUICKSTART))
    assert (recipe.name, recipe.path) == ("quickstart", QUICKSTART)
    (build,) = recipe.builds
    assert (build.recipe.device, build.recipe.precision) == ("cpu-x86_64", "int4")
    assert repr(recipe) == "<Recipe quickstart: quickstart>"
    assert str(recipe) == "quickstart  cpu-x86_64  onnxruntime  int4"


@pytest.mark.parametrize(
    "sets",
    [
        {"precision": "int8", "evaluate.tokens": 1024},
        ["precision=int8", "evaluate.tokens=1024"],
        ("precision=int8", "evaluate.tokens=1024"),
    ],
)
def test_values_replace_those_of_the_file(sets: dict[str, object] | list[str]) -> None:
    (build,) = Recipe.load(QUICKSTART, sets=sets).builds
    assert (build.recipe.precision, build.recipe.evaluate.tokens) == ("int8", 1024)


def test_a_single_text_is_one_value_and_not_its_letters() -> None:
    (build,) = Recipe.load(QUICKSTART, sets="precision=int8").builds
    assert build.recipe.precision == "int8"


def test_a_mapping_keeps_kinds(tmp_path: Path) -> None:
    (build,) = Recipe.load(QUICKSTART, sets={"tags": ["no", "012"]}).builds
    assert build.recipe.tags == ["no", "012"]
    with pytest.raises(RecipeError, match=r"evaluate\.tokens"):
        Recipe.load(QUICKSTART, sets={"evaluate.tokens": "1024"})


def test_variants_are_chosen_by_either_name(tmp_path: Path) -> None:
    path = recipes.write(tmp_path, "two", MATRIX)
    assert [b.name for b in Recipe.load(path).builds] == ["two-onnxruntime-int8", "two-small"]
    assert [b.name for b in Recipe.load(path, only="small").builds] == ["two-small"]
    assert [b.name for b in Recipe.load(path).only("two-small").builds] == ["two-small"]
    with pytest.raises(RecipeError, match="no such variant"):
        Recipe.load(path).only("smal")


def test_all_that_is_wrong_is_said_with_its_place(tmp_path: Path) -> None:
    path = recipes.write(tmp_path, "bad", "bakend: torch\ncontext: many\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert len(caught.value.problems) == 2
    assert "did you mean `backend`" in caught.value.message
    assert caught.value.place is not None
    assert caught.value.place.line == 5


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("~nobody-of-that-name", "no such home folder"),
        ("", "empty"),
        ("nothing.yaml", "nothing.yaml"),
        (".", "a folder"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_recipe_is_a_recipe_error(path: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.load(path)


def test_shipped_recipes_are_loaded_by_name() -> None:
    assert Recipe.shipped("quickstart").name == "quickstart"
    assert Recipe.shipped("board").path.parent.name == RECIPES.name
    with pytest.raises(RecipeError, match="did you mean `quickstart`"):
        Recipe.shipped("quikstart")


def test_a_notebook_shows_the_builds(tmp_path: Path) -> None:
    page = Recipe.load(recipes.write(tmp_path, "two", MATRIX))._repr_html_()
    assert page.count("<tr>") == 3
    assert "two-small" in page

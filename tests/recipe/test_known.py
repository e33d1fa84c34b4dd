"""Recipes that say the same but for a name: checked once, and each is told what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.recipes import write

from phipipe import backends
from phipipe.errors import RecipeError
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.recipe.recipe import Recipe

MORE = "backend: llamacpp\ntags: [x]\nevaluate: {gates: {top1: {min: 0.9}}}\n"


def load(path: Path, known: loading.Known | None = None) -> Build:
    (build,) = loading.load(path, options=backends.OptionsOf(), known=known)
    return build


def test_it_is_what_it_would_be_alone(tmp_path: Path) -> None:
    known: loading.Known = {}
    first, second = (write(tmp_path, name, MORE) for name in "ab")
    found = [load(first, known), load(second, known)]
    assert found == [load(first), load(second)]
    assert found[0].recipe.evaluate is found[1].recipe.evaluate
    assert found[1].recipe.model_fields_set == load(second).recipe.model_fields_set
    assert found[1].written == load(second).written


@pytest.mark.parametrize("name", ["A", "con", "", "x" * 81, "12", "[]", "a b"])
def test_a_name_that_will_not_do_is_told_as_ever(tmp_path: Path, name: str) -> None:
    known: loading.Known = {}
    load(write(tmp_path, "a", MORE), known)
    wrong = write(tmp_path, "b", MORE)
    wrong.write_text(wrong.read_text("utf-8").replace("name: b", f"name: {name}"), "utf-8")
    with pytest.raises(RecipeError) as alone:
        load(wrong)
    with pytest.raises(RecipeError) as after:
        load(wrong, known)
    assert str(after.value) == str(alone.value)


def test_what_is_wrong_is_told_of_each(tmp_path: Path) -> None:
    known: loading.Known = {}
    for name in "ab":
        path = write(tmp_path, name, "presicion: int8\n")
        with pytest.raises(RecipeError, match=f"{name}.yaml:5:1: unknown key"):
            load(path, known)
    assert not known


def test_another_folder_has_other_paths(tmp_path: Path) -> None:
    known: loading.Known = {}
    builds = [load(write(tmp_path / name, name), known) for name in "ab"]
    assert len(known) == 2
    assert [build.folder for build in builds] == [tmp_path / name for name in "ab"]


def test_a_place_is_found_from_the_text_that_was_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a", "unit: cuda\n")
    (build,) = loading.load(path, options=backends.OptionsOf(), sets=["precision=int8"])
    path.write_text("name: other\n", "utf-8")
    assert str(build.locate([("unit",)], "no")).startswith(f"{path}:5:7: no")
    assert str(build.locate([("precision",)], "no")) == "--set precision=int8: no"


def test_nobody_has_a_copy_of_a_default(tmp_path: Path) -> None:
    first, second = (load(write(tmp_path, name)).recipe for name in "ab")
    assert first.calibrate is second.calibrate is Recipe.model_fields["calibrate"].default

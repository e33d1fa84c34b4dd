"""`none` takes back what a recipe says of an optional key: in a variant, by ``--set``, anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from testing.places import RECIPES

from phipipe import backends
from phipipe.errors import RecipeError
from phipipe.planning import preparation
from phipipe.recipe import absent, loading, schema
from phipipe.recipe.build import Build
from phipipe.steps import Step

OPTIONS = backends.OptionsOf()
PLAIN = """\
name: x
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: onnxruntime
precision: int4
"""
FULL = (
    PLAIN
    + """\
unit: cpu
context: 512
weights: {learn: signround, iterations: 5, distil: true, group_size: 64, smooth: awq}
quantize: {map: {lm_head: {bits: 4}, embed_tokens: {bits: 8}}, accuracy_level: 4}
calibrate: {tokens: 2048, text: {file: learn.txt}}
evaluate:
  generate: {prompts: {file: asked.jsonl}, limit: 2}
  gates: {top1: {min: 0.9, max: 1.0}, kld_mean: {max: 0.1}}
  tolerance: {top1: 0.1, kld_mean: 0.1}
"""
)


def load(tmp_path: Path, text: str, **how: Any) -> list[Build]:
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    return loading.load(path, options=OPTIONS, **how)


def variant(tmp_path: Path, entry: str) -> Build:
    (build,) = load(tmp_path, f"{FULL}matrix:\n  - {{name: v, {entry}}}\n")
    return build


def steps(build: Build) -> list[Step]:
    """The plan's steps without the name of the recipe."""
    return [replace(step, recipe="") for step in preparation.prepare(build).steps]


@pytest.mark.parametrize(
    "weights",
    ["none", "{learn: none}", "{learn: none, smooth: none, distil: none, iterations: none}"],
)
def test_a_variant_that_learns_nothing_is_planned_as_if_nobody_had_asked(
    tmp_path: Path, weights: str
) -> None:
    (plain,) = load(tmp_path, PLAIN.replace("name: x", "name: x-b") + "quantize: {}\n")
    base = PLAIN + "weights: {learn: gptq}\n"
    learned, taken_back = load(
        tmp_path, f"{base}matrix:\n  - {{name: a}}\n  - {{name: b, weights: {weights}}}\n"
    )
    assert learned.recipe.weights.learn == "gptq"
    assert steps(learned) != steps(plain)
    assert taken_back.recipe.weights.learn is None
    recipe = taken_back.recipe.model_copy(update={"name": "x-b"})
    assert steps(replace(taken_back, recipe=recipe)) == steps(plain)


@pytest.mark.parametrize("key", ["weights=none", "weights.learn=none", "weights={}"])
def test_the_command_line_takes_learning_back(tmp_path: Path, key: str) -> None:
    text = PLAIN + "weights: {learn: gptq}\nmatrix: [{name: a}, {name: b, weights: {learn: gptq}}]"
    for build in load(tmp_path, text, sets=[key]):
        assert build.recipe.weights.learn is None


def test_options_as_a_whole_go_as_weights_do(tmp_path: Path) -> None:
    given = "quantize: {block_size: 64, map: {lm_head: {bits: 8}}}\n"
    text = f"{PLAIN}{given}matrix: [{{name: a}}, {{name: b, quantize: none}}]\n"
    kept, taken_back = load(tmp_path, text)
    assert kept.recipe.quantize["block_size"] == 64
    assert taken_back.recipe.quantize == {}
    (plain,) = load(tmp_path, PLAIN)
    assert taken_back.options == plain.options
    for build in load(tmp_path, text, sets=["quantize=none"]):
        assert (build.recipe.quantize, build.options) == ({}, plain.options)
    sets = ["quantize=none", "quantize.block_size=128"]
    assert [one.recipe.quantize for one in load(tmp_path, text, sets=sets)] == [
        {"block_size": 128},
        {"block_size": 128},
    ]
    (alone,) = load(tmp_path, f"{PLAIN}quantize: none\n")
    assert alone.options == plain.options


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(RECIPES.glob("*.yaml")) if "--set 'weights={}'" in p.read_text("utf-8")],
    ids=lambda p: p.stem,
)
def test_what_shipped_recipes_say_of_the_runtimes_own_rounding_is_true(path: Path) -> None:
    line = next(one for one in path.read_text("utf-8").splitlines() if "--set 'weights={}'" in one)
    sets = [part.split("'")[1] for part in line.split("--set ")[1:]]
    (build,) = loading.load(path, options=OPTIONS, sets=[*sets, "source={builtin: tiny-phi3}"])
    assert build.recipe.weights.learn is None
    assert build.recipe.quantize
    assert "learn" not in {step.name for step in preparation.prepare(build).steps}


def test_every_optional_key_goes_back_to_what_holds_without_it(tmp_path: Path) -> None:
    recipe = variant(
        tmp_path,
        "unit: none, context: none, weights: {smooth: none, learn: none, iterations: none, "
        "distil: none}, calibrate: {text: none}, quantize: {map: none, accuracy_level: none}, "
        "evaluate: {generate: none, gates: none, tolerance: none}",
    ).recipe
    assert (recipe.unit, recipe.context, recipe.quantize) == (None, None, {})
    assert recipe.weights.model_dump(exclude={"group_size"}) == {
        "smooth": "none", "learn": None, "iterations": None, "distil": None,
    }  # fmt: skip
    assert recipe.calibrate.text is None
    assert recipe.calibrate.tokens == 2048
    evaluate = recipe.evaluate
    assert (evaluate.generate, evaluate.gates, evaluate.tolerance) == (None, {}, {})


def test_one_entry_goes_and_the_others_stay(tmp_path: Path) -> None:
    recipe = variant(
        tmp_path,
        "weights: {learn: gptq, iterations: none}, quantize: {map: {lm_head: none}}, evaluate: "
        "{generate: {limit: none, prompts: {builtin: chats}}, gates: {top1: {max: none}, kld_mean: "
        "none}, tolerance: {kld_mean: none}}",
    ).recipe
    assert list(recipe.quantize["map"]) == ["embed_tokens"]
    assert {name: gate.max for name, gate in recipe.evaluate.gates.items()} == {"top1": None}
    assert recipe.evaluate.tolerance == {"top1": 0.1}
    assert recipe.evaluate.generate is not None
    assert recipe.evaluate.generate.limit is None
    assert recipe.evaluate.generate.prompts.builtin == "chats"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("precision: none", "unknown value `none`"),
        ("weights: {lern: none}", "unknown key `lern`"),
        ("evaluate: {gates: {top2: none}}", "unknown metric `top2`"),
        ("evaluate: {gates: {top1: {min: none, max: none}}}", "a gate has `min`, `max` or both"),
        ("quantize: {blok_size: none}", "unknown key `blok_size`"),
        ("measure: none", "expected a mapping of keys"),
        ("measure: {new_tokens: none}", "expected a whole number"),
        ("weights: {learn: none}", "write `iterations: none`"),
        ("weights: {learn: none, iterations: none}", "write `distil: none`"),
    ],
)
def test_what_has_no_absence_or_no_such_name_is_told(
    tmp_path: Path, entry: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        variant(tmp_path, entry)
    assert words in caught.value.message


def test_files_may_be_called_none(tmp_path: Path) -> None:
    recipe = variant(tmp_path, "evaluate: {text: {file: none}}").recipe
    assert recipe.evaluate.text.file == "none"


@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_no_option_means_something_else_by_none(backend: str) -> None:
    for key, field in OPTIONS[backend].model_fields.items():
        if absent.may_be_none(key, field):
            assert "'none'" not in repr(field.annotation), key


def test_set_lays_keys_on_a_section_that_was_taken_back(tmp_path: Path) -> None:
    back = "{name: b, weights: none, evaluate: {gates: none}}"
    text = f"{FULL}matrix:\n  - {{name: a}}\n  - {back}\n"
    sets = ["weights.learn=round", "weights.iterations=none", "evaluate.gates.top1.min=0.5"]
    with_both, taken_back = (build.recipe for build in load(tmp_path, text, sets=sets))
    assert (with_both.weights.learn, with_both.weights.group_size) == ("round", 64)
    assert (taken_back.weights.learn, taken_back.weights.group_size) == ("round", 32)
    assert {name: gate.min for name, gate in taken_back.evaluate.gates.items()} == {"top1": 0.5}


def test_set_begins_with_a_section_that_the_recipe_itself_takes_back(tmp_path: Path) -> None:
    (build,) = load(tmp_path, f"{PLAIN}weights: none\n", sets=["weights.learn=round"])
    assert build.recipe.weights.learn == "round"


def test_an_entry_of_a_map_gives_back_its_group(tmp_path: Path) -> None:
    map_ = "lm_head: {bits: 4, group_size: 64}"
    entry = "{name: v, quantize: {map: {lm_head: {bits: 8, group_size: none}}}}"
    litert = PLAIN.replace("onnxruntime", "litert")
    text = f"{litert}quantize: {{map: {{{map_}}}}}\nmatrix: [{entry}]\n"
    (build,) = load(tmp_path, text)
    assert str(build.options.map["lm_head"]) == "8 bits"
    whole = yaml.safe_load(text)
    assert Draft202012Validator(schema.build(OPTIONS)).is_valid(whole)
    with pytest.raises(RecipeError, match="unknown value `none`"):
        load(tmp_path, text.replace("bits: 8", "bits: none"))

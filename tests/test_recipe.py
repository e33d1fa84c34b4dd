"""What the user writes: every mistake is named with its line and column, and nothing else is guessed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phipipe import backends, document, recipe
from phipipe.errors import PhipipeError, RecipeError

GOOD = """\
name: good
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: onnxruntime
precision: int4
quantize:
  block_size: 32
  exclude: ['*/layers.0/*']
evaluate:
  text: {builtin: stories}
  tokens: 4096
  window: 512
  gates:
    kld_mean: {max: 0.05}
    top1: {min: 0.9}
measure: {prompt_tokens: 64}
tags: [a, b]
"""
OPTIONS = backends.OptionsOf()


def load(tmp_path: Path, text: str | bytes, **how: Any) -> list[recipe.Build]:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return recipe.load(path, options=OPTIONS, **how)


def refusal(tmp_path: Path, text: str | bytes, **how: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, **how)
    assert caught.value.exit_code == 2
    return caught.value.message.replace(str(tmp_path / "r.yaml"), "r.yaml")


def test_a_good_recipe_is_frozen_and_complete(tmp_path: Path) -> None:
    (build,) = load(tmp_path, GOOD)
    assert build.recipe.evaluate.gates["top1"].min == 0.9
    assert build.options is not None
    assert build.options.model_dump()["exclude"] == ["*/layers.0/*"]
    assert build.recipe.measure.repetitions == 5
    with pytest.raises(ValueError, match="frozen"):
        build.recipe.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("precision: int4", "precison: int4", "5:1", "unknown key `precison`; did you mean `precision`?"),
        ("precision: int4", "precision: int3", "5:12", "one of int4, int8, fp16, fp32"),
        ("name: good", "name: Good", "1:7", "lower-case"),
        ("name: good", "name: 12", "1:7", "put it in quotes"),
        ("name: good", "names: good", "1:1", "did you mean `name`?"),
        ("tiny-phi3", "tiny-phi", "2:19", "did you mean `tiny-phi3`?"),
        ("{builtin: tiny-phi3}", "tiny-phi3", "2:9", "expected a mapping"),
        ("{builtin: tiny-phi3}", "{}", "2:9", "give exactly one of"),
        ("{builtin: tiny-phi3}", "{builtin: tiny-phi3, path: x}", "2:9", "give exactly one of"),
        ("{builtin: tiny-phi3}", "{repo: a/b}", "2:9", "40-hex commit"),
        ("{builtin: tiny-phi3}", "{repo: a/b, revision: main}", "2:31", "never a branch"),
        ("backend: onnxruntime", "backend: onxruntime", "4:10", "did you mean `onnxruntime`?"),
        ("block_size: 32", "block_size: 48", "7:15", "16, 32, 64, 128, 256"),
        ("block_size: 32", "blocksize: 32", "7:3", "did you mean `block_size`?"),
        ("block_size: 32", "accuracy_level: 7", "7:19", "must be at most 4"),
        ("block_size: 32", "symmetric: no", "7:14", "expected true or false, got text `no`"),
        ("tokens: 4096", 'tokens: "4096"', "11:11", "expected a whole number, got text `4096`"),
        ("tokens: 4096", "tokens: true", "11:11", "expected a whole number, got true"),
        ("tokens: 4096", "tokens: 1.5", "11:11", "expected a whole number"),
        ("tokens: 4096", "tokens: 12", "11:11", "must be at least 256"),
        ("window: 512", "window: 8192", "10:3", "longer than `tokens`"),
        ("kld_mean:", "kld_men:", "14:5", "did you mean `kld_mean`?"),
        ("{max: 0.05}", "{}", "14:15", "a gate has `min`, `max` or both"),
        ("{max: 0.05}", "{min: 2, max: 1}", "14:15", "no value passes"),
        ("{max: 0.05}", "{max: .nan}", "14:21", "finite"),
        ("tags: [a, b]", "tags: a", "17:7", "expected a list"),
        ("tags: [a, b]", "name: again", "17:1", "stands here again; first on line 1"),
        ("tags: [a, b]", "tags: &x [a]", "17:7", "an anchor"),
        ("tags: [a, b]", "tags: !!python/object [a]", "17:7", "a tag"),
        ("tags: [a, b]", "tags: [a\nb: ]", "18:2", "YAML"),
    ],
)
def test_a_single_mistake_is_named_where_it_is(tmp_path: Path, old: str, new: str, place: str, words: str) -> None:
    assert GOOD.count(old) == 1
    message = refusal(tmp_path, GOOD.replace(old, new))
    line = place.split(":")[0]
    where = "r.yaml:10:" if words == "longer than `tokens`" else f"r.yaml:{line}:"
    assert where in message
    assert place in message or words in ("YAML", "longer than `tokens`", "expected a list")
    assert words in message
    assert "^" in message


def test_all_problems_are_reported_at_once_in_order(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("int4", "int3").replace("32", "33").replace("tags", "tag"))
    assert re.findall(r"r\.yaml:(\d+):", message) == ["5", "7", "17"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("name: x\n---\nname: y\n", "a second document"),
        ("name: x\n\tdevice: y\n", "tab"),
        ("name: x\n   device: y\n", "indentation"),
        ("name: 'x\n", "quote"),
        ("a: &a [x]\nb: [*a, *a]\n", "an anchor"),
        ("b: *a\n", "alias"),
        ("a: " + "[" * 30 + "]" * 30, "nested deeper"),
        ("a: [" + "1, " * 30_000 + "]", "more than 20000 values"),
        ("a: " + "9" * 5000, "too many digits"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"name: \0", "not a text file"),
        (b"x" * (2**20 + 1), "at most"),
    ],
)
def test_what_is_no_recipe_is_refused_in_words(tmp_path: Path, text: str | bytes, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"did you mean `quick\.yaml`"):
        recipe.load(tmp_path / "quikc.yaml", options=OPTIONS)
    with pytest.raises(RecipeError, match="is a folder"):
        recipe.load(tmp_path, options=OPTIONS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("012", 12), ("0o17", 15), ("0x1F", 31), ("1e3", 1000.0),
        (".5", 0.5), ("-3", -3), (".inf", float("inf")), ("~", None), ("null", None), ("True", True),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("'12'", "12"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = document.parse(f"a: {text}", "x").data["a"]
    assert found == value
    assert type(found) is type(value)


MATRIX = GOOD + "matrix:\n  - {precision: int8}\n  - {name: torch, backend: torch, precision: fp32}\n"


def test_a_matrix_merges_and_does_not_hand_options_to_another_backend(tmp_path: Path) -> None:
    first, second = load(tmp_path, MATRIX)
    assert (first.name, second.name) == ("good-onnxruntime-int8", "good-torch")
    assert first.recipe.quantize["block_size"] == 32
    assert second.recipe.quantize == {}
    assert first.recipe.evaluate.tokens == 4096


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("  - {precison: int8}\n", "unknown key `precison` in a variant; did you mean `precision`?"),
        ("  - {precision: int8}\n", "a second variant"),
        ("  - int8\n", "list of variants"),
    ],
)
def test_mistakes_in_a_matrix_are_named(tmp_path: Path, extra: str, words: str) -> None:
    assert words in refusal(tmp_path, MATRIX + extra)


def test_only_picks_by_either_name_and_knows_what_there_is(tmp_path: Path) -> None:
    assert [b.name for b in load(tmp_path, MATRIX, only=["torch"])] == ["good-torch"]
    assert [b.name for b in load(tmp_path, MATRIX, only=["good-torch"])] == ["good-torch"]
    assert "no such variant" in refusal(tmp_path, MATRIX, only=["torhc"])


def test_set_equals_editing_the_file(tmp_path: Path) -> None:
    for dotted, value in (("precision", "int8"), ("evaluate.tokens", "1024"), ("tags", "[x]"), ("source", "{path: a}")):
        (overridden,) = load(tmp_path, GOOD, sets=[f"{dotted}={value}"])
        data = yaml.safe_load(GOOD)
        inner = data
        *parents, last = dotted.split(".")
        for key in parents:
            inner = inner[key]
        inner[last] = yaml.safe_load(value)
        (edited,) = load(tmp_path, yaml.safe_dump(data))
        assert overridden.recipe == edited.recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("evaluate.tokens=abc", "--set evaluate.tokens=abc: expected a whole number"),
        ("evaluate.tokes=1024", "unknown key `tokes`; did you mean `tokens`?"),
        ("precision", "KEY=VALUE"),
        ("name.x=1", "`name` is not a mapping"),
        ("tags=[a", "--set tags=[a:"),
    ],
)
def test_a_wrong_set_names_itself(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, GOOD, sets=[text])


LINES = GOOD.splitlines()


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = GOOD
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=6)) + text[at + draw(st.integers(0, 8)) :]
    return text


@settings(max_examples=1500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(mutated(), st.text(max_size=200), st.binary(max_size=200)))
def test_whatever_the_file_holds_the_answer_is_a_build_or_a_clear_error(tmp_path: Path, text: str | bytes) -> None:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        builds = load(tmp_path, raw)
    except PhipipeError as error:
        assert error.exit_code == 2  # noqa: PT017 (both outcomes are right, a traceback is not)
        assert "r.yaml" in error.message  # noqa: PT017
    else:
        assert builds


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([i for i, line in enumerate(LINES) if ":" in line]), st.sampled_from("qxz"))
def test_a_misspelt_key_is_reported_on_its_own_line(tmp_path: Path, at: int, letter: str) -> None:
    key = LINES[at].split(":")[0]
    spoiled = [*LINES[:at], f"{key}{letter}{LINES[at][len(key) :]}", *LINES[at + 1 :]]
    assert f"r.yaml:{at + 1}:" in refusal(tmp_path, "\n".join(spoiled))

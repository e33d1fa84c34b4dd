"""A variant's patterns, and those of ``--set``, decide before those of the recipe; one that is
taken back has to be there."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe import backends
from phipipe.errors import RecipeError, TargetError
from phipipe.planning import preparation
from phipipe.recipe import loading, patterns
from phipipe.recipe.build import Build

OPTIONS = backends.OptionsOf()
PLAIN = """\
name: x
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
"""
NAMES = st.text("ab.", max_size=5)
GLOBS = st.text("ab.*?", min_size=1, max_size=5) | st.sampled_from(["*", "[ab]", "a.*", "*[a]*"])
MAPS = st.dictionaries(GLOBS, st.sampled_from(["none", "4", "8"]), max_size=5)


def load(tmp_path: Path, text: str, *sets: str) -> list[Build]:
    path = tmp_path / "r.yaml"
    path.write_text(PLAIN + text, "utf-8")
    return loading.load(path, options=OPTIONS, sets=sets)


def decided(name: str, chosen: Mapping[str, str]) -> str | None:
    """The first pattern that matches decides; `none` is no pattern."""
    told = (value for one, value in chosen.items() if fnmatch.fnmatchcase(name, one))
    return next((value for value in told if value != "none"), None)


def widths(build: Build) -> dict[str, str]:
    """Matrix → its width, as planned."""
    plan = preparation.prepare(build)
    job = preparation.job_of(build, plan.whole)
    return {name: str(width) for name, width in job.widths.items()}


@given(pattern=GLOBS, other=GLOBS, name=NAMES)
def test_what_covers_a_pattern_matches_all_that_it_does(
    pattern: str, other: str, name: str
) -> None:
    if patterns.covers(pattern, other) and fnmatch.fnmatchcase(name, other):
        assert fnmatch.fnmatchcase(name, pattern)


@given(base=MAPS, over=MAPS, name=NAMES)
def test_what_is_laid_on_top_decides_and_the_rest_stays(
    base: dict[str, str], over: dict[str, str], name: str
) -> None:
    inherited = {one: value for one, value in base.items() if one not in over}
    expected = decided(name, over) or decided(name, inherited)
    assert decided(name, patterns.laid(base, over)) == expected


WIDE = 'quantize: {map: {"layers.*": {bits: 8}, lm_head: {bits: 8}}}\n'
ONE = '"layers.1.mlp.down_proj": {bits: 4, group_size: 32}'


@pytest.mark.parametrize(
    ("entry", "sets"),
    [
        (f"quantize: {{map: {{{ONE}}}}}", []),
        ("", ["quantize.map.layers.1.mlp.down_proj={bits: 4, group_size: 32}"]),
        (
            "quantize: {map: {layers.1.mlp.down_proj: {bits: 8}}}",
            [
                "quantize.map.layers.1.mlp.down_proj.bits=4",
                "quantize.map.layers.1.mlp.down_proj.group_size=32",
            ],
        ),
    ],
)
def test_a_variants_pattern_wins_over_a_wildcard(
    tmp_path: Path, entry: str, sets: list[str]
) -> None:
    text = f"{WIDE}matrix:\n  - {{name: a, {entry}}}\n"
    found = widths(load(tmp_path, text, *sets)[0])
    assert found.pop("layers.1.mlp.down_proj") == "4 bits in groups of 32"
    assert set(found.values()) == {"8 bits"}
    assert len(found) > 10


def test_a_variants_wildcard_takes_the_place_of_what_it_covers(tmp_path: Path) -> None:
    text = f'{WIDE}matrix:\n  - {{name: a, quantize: {{map: {{"*": {{bits: 4}}}}}}}}\n'
    (build,) = load(tmp_path, text)
    assert set(widths(build).values()) == {"4 bits"}
    assert list(build.recipe.quantize["map"]) == ["*"]


@pytest.mark.parametrize(
    ("entry", "sets"),
    [
        ('quantize: {tensors: {"blk.0.ffn_down": Q8_0}}', []),
        ("", ["quantize.tensors.blk.0.ffn_down=Q8_0"]),
    ],
)
def test_expressions_over_tensors_come_before_the_inherited_ones(
    tmp_path: Path, entry: str, sets: list[str]
) -> None:
    text = 'backend: llamacpp\nquantize: {tensors: {ffn: Q4_0, "ffn_up": Q5_0, attn: Q6_K}}\n'
    (build,) = load(tmp_path, f"{text}matrix:\n  - {{name: a, {entry}}}\n", *sets)
    told = list(build.recipe.quantize["tensors"].items())
    assert told[0] == ("blk.0.ffn_down", "Q8_0")
    assert [name for name, _ in told[1:]] == ["ffn", "ffn_up", "attn"], "as they were"
    (step,) = [s for s in preparation.prepare(build).steps if s.name == "quantize"]
    assert step.params["tensors"][0] == ["blk.0.ffn_down", "Q8_0"]


def test_an_expression_that_is_given_anew_or_taken_back_stands_once(tmp_path: Path) -> None:
    text = "backend: llamacpp\nquantize: {tensors: {ffn: Q4_0, attn: Q6_K}}\n"
    variant = "{name: a, quantize: {tensors: {attn: Q8_0, ffn: none}}}"
    (build,) = load(tmp_path, f"{text}matrix:\n  - {variant}\n")
    assert list(build.recipe.quantize["tensors"].items()) == [("attn", "Q8_0")]


def test_what_a_variant_covers_only_in_parts_is_told(tmp_path: Path) -> None:
    entry = "{lm_*: {bits: 4}, layers.*.q*: {bits: 4}, 'layers.*.[!q]*': {bits: 4}}"
    text = f"{WIDE}matrix:\n  - {{name: a, quantize: {{map: {entry}}}}}\n"
    (build,) = load(tmp_path, text)
    with pytest.raises(TargetError, match=r"`layers\.\*` decides nothing") as caught:
        preparation.prepare(build)
    assert "`none` takes it back" in str(caught.value.hint)


def test_without_overlap_the_order_changes_no_step(tmp_path: Path) -> None:
    both = 'quantize: {map: {"layers.*": {bits: 8}, lm_head: {bits: 8}, embed_tokens: {bits: 4}}}\n'
    more = "matrix: [{name: a, quantize: {map: {embed_tokens: {bits: 4}}}}]\n"
    plans = [
        preparation.prepare(load(tmp_path, text)[0])
        for text in (both + "matrix: [{name: a}]\n", WIDE + more)
    ]
    shown = [[step.params for step in plan.steps if step.name != "package"] for plan in plans]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            WIDE,
            "quantize.map.lm_hed=none",
            "`quantize.map` has no `lm_hed` to take back; did you mean `lm_head`?",
        ),
        (
            WIDE,
            "quantize.map.foo=none",
            "`quantize.map` has no `foo` to take back; there is `layers.*`, `lm_head`",
        ),
        ("", "quantize.map.foo=none", "`quantize.map` has no `foo` to take back; there is nothing"),
        (
            "backend: llamacpp\nquantize: {tensors: {ffn_down: Q8_0}}\n",
            "quantize.tensors.attn_v=none",
            "`quantize.tensors` has no `attn_v` to take back; there is `ffn_down`",
        ),
    ],
)
def test_set_takes_back_only_what_is_there(tmp_path: Path, text: str, key: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, key)
    assert caught.value.message == f"--set {key}: {words}"


def test_set_takes_back_what_only_a_variant_has(tmp_path: Path) -> None:
    text = f"{WIDE}matrix: [{{name: a}}, {{name: b, quantize: {{map: {{{ONE}}}}}}}]\n"
    for build in load(tmp_path, text, "quantize.map.layers.1.mlp.down_proj=none"):
        assert list(build.recipe.quantize["map"]) == ["layers.*", "lm_head"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            "{map: {lm_hed: none}}",
            "6:37: `quantize.map` has no `lm_hed` to take back; did you mean",
        ),
        (
            "{map: {a.*: none}}",
            "6:37: `quantize.map` has no `a.*` to take back; there is `layers.*`",
        ),
    ],
)
def test_a_variant_takes_back_only_what_it_inherits(tmp_path: Path, entry: str, words: str) -> None:
    with pytest.raises(RecipeError, match="to take back") as caught:
        load(tmp_path, f"{WIDE}matrix: [{{name: a, quantize: {entry}}}]\n")
    assert f"r.yaml:{words}" in caught.value.message


def test_another_backend_inherits_no_patterns(tmp_path: Path) -> None:
    entry = "{backend: torch, quantize: {map: {lm_head: none}}}"
    with pytest.raises(RecipeError, match="has no `lm_head` to take back; there is nothing"):
        load(tmp_path, f"{WIDE}matrix: [{entry}]\n")


def sections() -> dict[str, set[str]]:
    return {name: set(OPTIONS[name].model_fields) for name in backends.names()}


def test_every_option_that_maps_patterns_is_known() -> None:
    known = {key for keys in sections().values() for key in keys & set(patterns.ENTRIES)}
    assert known == set(patterns.ENTRIES)
    for name in backends.names():
        for key, field in OPTIONS[name].model_fields.items():
            assert (field.default == {}) == (key in patterns.ENTRIES), (name, key)

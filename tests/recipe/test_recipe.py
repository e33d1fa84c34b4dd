"""What the user writes: every mistake is named with its line and column, and nothing else is
guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.clock import DEADLINE_MS, computed_within
from testing.tiers import sizes

from phipipe import backends
from phipipe.errors import PhipipeError, RecipeError
from phipipe.files import file_names
from phipipe.metrics import METRICS
from phipipe.recipe import document, loading, recipe
from phipipe.recipe.build import Build, problem_at

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


def load(tmp_path: Path, text: str | bytes, **how: Any) -> list[Build]:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return loading.load(path, options=OPTIONS, **how)


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
    assert build.recipe.measure.repetitions is None
    with pytest.raises(ValueError, match="frozen"):
        build.recipe.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        (
            "precision: int4",
            "precison: int4",
            "5:1",
            "unknown key `precison`; did you mean `precision`?",
        ),
        ("precision: int4", "precision: int3", "5:12", "one of int4, int8, fp16, fp32"),
        ("name: good", "name: Good", "1:7", "lower-case"),
        ("name: good", "name: 12", "1:7", "put it in quotes"),
        ("name: good", "name: con", "1:7", "Windows keeps this name"),
        ("name: good", "name: a..", "1:7", "trailing dots"),
        ("name: good", "names: good", "1:1", "did you mean `name`?"),
        ("tiny-phi3", "tiny-phi", "2:19", "did you mean `tiny-phi3`?"),
        ("{builtin: tiny-phi3}", "tiny-phi3", "2:9", "expected a mapping"),
        ("{builtin: tiny-phi3}", "{}", "2:9", "give exactly one of"),
        ("{builtin: tiny-phi3}", "{builtin: tiny-phi3, path: x}", "2:9", "give exactly one of"),
        ("{builtin: tiny-phi3}", "{builtin: tiny-phi3, path: }", "2:36", "`path` has no value"),
        ("{builtin: tiny-phi3}", "{repo: a/b}", "2:9", "40-hex commit"),
        ("{builtin: tiny-phi3}", "{repo: a/b, revision: main}", "2:31", "never a branch"),
        ("backend: onnxruntime", "backend: onxruntime", "4:10", "did you mean `onnxruntime`?"),
        ("block_size: 32", "block_size: 48", "7:15", "16, 32, 64, 128, 256"),
        ("block_size: 32", "blocksize: 32", "7:3", "did you mean `block_size`?"),
        ("block_size: 32", "accuracy_level: 7", "7:19", "must be at most 4"),
        ("block_size: 32", "symmetric: no", "7:14", "expected true or false, got text `no`"),
        ("tokens: 4096", 'tokens: "4096"', "11:11", "got text `4096`; take the quotes"),
        ("tokens: 4096", "tokens: many", "11:11", "a whole number or `auto`, got text `many`"),
        ("tokens: 4096", "tokens: Auto", "11:11", "got text `Auto`; did you mean `auto`?"),
        ("tokens: 4096", "tokens: 20000000", "11:11", "must be at most 10000000, not `20000000`"),
        ("tokens: 4096", "tokens: true", "11:11", "expected a whole number or `auto`, got true"),
        ("tokens: 4096", "tokens: 1.5", "11:11", "expected a whole number"),
        ("tokens: 4096", "tokens: 12", "11:11", "must be at least 256"),
        ("window: 512", "window: 8192", "12:11", "longer than `tokens`"),
        ("kld_mean:", "kld_men:", "14:5", "did you mean `kld_mean`?"),
        ("{max: 0.05}", "{}", "14:15", "a gate has `min`, `max` or both"),
        ("{max: 0.05}", "{min: 2, max: 1}", "14:15", "no value passes"),
        ("{max: 0.05}", "{max: .nan}", "14:21", "finite"),
        ("tags: [a, b]", "tags: a", "17:7", "expected a list"),
        ("tags: [a, b]", "name: again", "17:1", "stands here again; first on line 1"),
        ("tags: [a, b]", "tags: &x [a]", "17:7", "an anchor"),
        ("tags: [a, b]", "tags: !!python/object [a]", "17:7", "a tag"),
        ("tags: [a, b]", "tags: [a\nb: ]", "17:7", "a `[` that is never closed"),
    ],
)
def test_a_single_mistake_is_named_where_it_is(
    tmp_path: Path, old: str, new: str, place: str, words: str
) -> None:
    assert GOOD.count(old) == 1
    message = refusal(tmp_path, GOOD.replace(old, new))
    assert f"r.yaml:{place}: " in message
    assert words in message
    assert "^" in message


def test_all_problems_are_reported_at_once_in_order(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, GOOD.replace("int4", "int3").replace("32", "33").replace("tags", "tag")
    )
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
def test_what_is_no_recipe_is_refused_in_words(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    assert words in refusal(tmp_path, text)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"did you mean `quick\.yaml`"):
        loading.load(tmp_path / "quikc.yaml", options=OPTIONS)
    with pytest.raises(RecipeError, match="is a folder"):
        loading.load(tmp_path, options=OPTIONS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("012", 12), ("0o17", 15), ("0x1F", 31),
        ("1e3", 1000.0), (".5", 0.5), ("-3", -3), (".inf", float("inf")), ("~", None),
        ("null", None), ("True", True), ("1_000", "1_000"), ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"), ("'12'", "12"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = document.parse(f"a: {text}", "x").data["a"]
    assert found == value
    assert type(found) is type(value)


MATRIX = (
    GOOD + "matrix:\n  - {precision: int8}\n  - {name: torch, backend: torch, precision: fp32}\n"
)


def test_a_matrix_merges_and_does_not_hand_options_to_another_backend(tmp_path: Path) -> None:
    first, second = load(tmp_path, MATRIX)
    assert (first.name, second.name) == ("good-onnxruntime-int8", "good-torch")
    assert first.recipe.quantize["block_size"] == 32
    assert second.recipe.quantize == {}
    assert first.recipe.evaluate.tokens == 4096


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            "  - {precison: int8}\n",
            "unknown key `precison` in a variant; did you mean `precision`?",
        ),
        ("  - {precision: int8}\n", "a second variant"),
        ("  - int8\n", "list of variants"),
    ],
)
def test_mistakes_in_a_matrix_are_named(tmp_path: Path, extra: str, words: str) -> None:
    assert words in refusal(tmp_path, MATRIX + extra)


def test_what_one_variant_says_is_missing_from_the_other(tmp_path: Path) -> None:
    text = GOOD.replace("device: cpu-x86_64\n", "")
    matrix = "matrix:\n  - {name: a, device: cpu-x86_64}\n  - {name: b}\n"
    line = text.count("\n") + 3
    assert f"r.yaml:{line}:" in refusal(tmp_path, text + matrix)


def test_only_picks_by_either_name_and_knows_what_there_is(tmp_path: Path) -> None:
    assert [b.name for b in load(tmp_path, MATRIX, only=["torch"])] == ["good-torch"]
    assert [b.name for b in load(tmp_path, MATRIX, only=["good-torch"])] == ["good-torch"]
    assert "no such variant" in refusal(tmp_path, MATRIX, only=["torhc"])


def test_set_equals_editing_the_file(tmp_path: Path) -> None:
    for dotted, value in (
        ("precision", "int8"),
        ("evaluate.tokens", "1024"),
        ("tags", "[x]"),
        ("source", "{path: a}"),
    ):
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
PLACE = re.compile(r"^r\.yaml:(\d+):\d+: ", re.MULTILINE)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = GOOD
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=6)) + text[at + draw(st.integers(0, 8)) :]
    return text


ODD: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            10**40,
            1e308,
            0.5,
            ".nan",
            "",
            "int4",
            "no",
            "a" * 99,
            "..",
            "é\u0301",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "min", "x", ""]), inner)
    ),
    max_leaves=5,
)
KEYS = [*recipe.Recipe.model_fields, "matrix", "nmae", ""]
RESHAPED = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=4).map(
    lambda odd: yaml.safe_dump(yaml.safe_load(GOOD) | odd, sort_keys=False, allow_unicode=True)
)


@pytest.mark.full
@pytest.mark.parametrize("files", sizes(2000, 100_000))
def test_whatever_the_file_holds_the_answer_is_a_build_or_a_clear_error(
    tmp_path: Path, files: int
) -> None:
    @settings(max_examples=files, deadline=DEADLINE_MS)
    @given(st.one_of(mutated(), RESHAPED, st.text(max_size=200), st.binary(max_size=200)))
    def check(text: str | bytes) -> None:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        try:
            builds = load(tmp_path, raw)
        except PhipipeError as error:
            assert error.exit_code == 2  # noqa: PT017 (both outcomes are right, a traceback is not)
            assert PLACE.match(error.message.replace(str(tmp_path / "r.yaml"), "r.yaml"))  # noqa: PT017
        else:
            assert builds

    check()


@settings(
    max_examples=300,
    deadline=DEADLINE_MS,
)
@given(st.sampled_from([i for i, line in enumerate(LINES) if ":" in line]), st.sampled_from("qxz"))
def test_a_misspelt_key_is_reported_on_its_own_line(tmp_path: Path, at: int, letter: str) -> None:
    key = LINES[at].split(":")[0]
    spoiled = [*LINES[:at], f"{key}{letter}{LINES[at][len(key) :]}", *LINES[at + 1 :]]
    assert f"r.yaml:{at + 1}:" in refusal(tmp_path, "\n".join(spoiled))


DEEP = """\
name: deep
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
quantize:
  block_size: 32
  exclude: ['*/layers.0/*']
evaluate:
  tokens: 4096
  gates:
    kld_mean: {max: 0.05}
    top1:
      min: 0.9
tags: [a, "b c"]
matrix:
  - {precision: int8}
  - name: plain
    backend: torch
    precision: fp32
"""


def slips(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Every text that one slip of the finger on one line makes of ``lines``, and that line's
    number."""
    for i, line in enumerate(lines):
        made = {
            line[:c] + letter + line[c:]
            for c in range(len(line) + 1)
            for letter in "'\"[]{}:,&!|@\t-? x"
        }
        made |= {line[:c] + line[c + 1 :] for c in range(len(line))}
        made |= {
            line[:c] + line[c + 1 : c + 2] + line[c : c + 1] + line[c + 2 :]
            for c in range(len(line))
        }
        made |= {f" {line}", f"  {line}", f"{line}\n{line}", line.partition(": ")[0] + ":"}
        for new in sorted(made - {line}):
            yield i + 1, "\n".join([*lines[:i], new, *lines[i + 1 :]]) + "\n"


@pytest.mark.full
def test_999_of_1000_slips_are_reported_with_their_line(tmp_path: Path) -> None:
    """R8. Which of two lines has the wrong indentation, nobody can know: such a message names
    both."""
    found, first, missed = 0, 0, []
    for line, text in slips(DEEP.splitlines()):
        try:
            load(tmp_path, text)
        except RecipeError as error:
            message = error.message.replace(str(tmp_path / "r.yaml"), "r.yaml")
            places = {int(place) for place in PLACE.findall(message)}
            found += 1
            first += bool(places & {line, line + text.count("\n") - DEEP.count("\n")})
            if line not in places | {int(n) for n in re.findall(r"\bon line (\d+)", message)}:
                missed.append((line, text, message))
    assert found > 4000
    assert len(missed) <= found / 1000, missed[:3]
    assert first >= 0.98 * found  # the caret itself is on the line


def test_a_problem_of_the_rest_is_reported_once_and_one_of_a_variant_in_it(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, MATRIX.replace("block_size: 32", "block_size: 33").replace("fp32", "fp33")
    )
    assert PLACE.findall(message) == ["7", "20"]
    with_own = MATRIX.replace("{precision: int8}", "{precision: int8, quantize: {symmetric: 3}}")
    message = refusal(tmp_path, with_own.replace("block_size: 32", "block_size: 33"))
    assert PLACE.findall(message) == ["7", "19"]
    without = "\n".join(line for line in MATRIX.splitlines() if not line.startswith("device"))
    assert refusal(tmp_path, without).startswith("r.yaml:1:1: `device` is missing\n")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{precision: int8, name: ../up}", "a variant's name is text"),
        ("{precision: int8, name: 12}", "a variant's name is text"),
        ("{precision: int8, name: ''}", "a variant's name is text"),
        (f"{{name: {'a' * 76}}}", "more than 80 characters together"),
        ("{tags: [x]}", "`tags` is the same for all variants"),
        ("{cache: {keep: all}}", "`cache` is the same for all variants"),
        ("{source: {path: x}}", "`source` is the same for all variants"),
        ("{quantize: {block_sise: 16}}", "did you mean `block_size`?"),
        ("{backend: torch, quantize: {block_size: 16}}", "unknown key `block_size`"),
        (
            "{backend: llamacpp, quantize: {ctk: 16}}",
            "unknown key `ctk`; known here: map, type",
        ),
        ("{precision: }", "`precision` has no value; it is one of int4, int8, fp16, fp32"),
    ],
)
def test_a_variant_is_checked_like_the_rest(tmp_path: Path, entry: str, words: str) -> None:
    message = refusal(tmp_path, f"{GOOD}matrix:\n  - {entry}\n")
    assert words in message
    assert set(PLACE.findall(message)) == {"19"}


def test_a_variant_may_have_a_long_name(tmp_path: Path) -> None:
    (build,) = load(tmp_path, f"{GOOD}matrix:\n  - {{name: {'a' * 75}}}\n")
    assert build.name == "good-" + "a" * 75


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "".join(f"quantise{i}: 1\n" for i in range(9_000)),
        GOOD.replace("tags: [a, b]", f"tags: [{'1, ' * 9_000}]"),
        GOOD.replace("gates:", "gates:\n" + "".join(f"    kld{i}: {{}}\n" for i in range(5_000))),
        GOOD.replace("tags: [a, b]", f"tags: [{'x, ' * 9_000}]") + "matrix:\n" + "  - {}\n" * 5_000,
        GOOD + "matrix:\n" + "  - {precison: int8}\n" * 5_000,
        GOOD + "".join(f"k{i}: 1\n" for i in range(5_000)) + "matrix:\n" + "  - {}\n" * 2_000,
        "name: " + "x" * 1_000_000,
        "x" * 1_000_000 + ": 1",
        GOOD + "name: 1\n" * 9_000,
    ],
    ids=[
        "keys",
        "values",
        "metrics",
        "variants",
        "variant-keys",
        "keys-times-variants",
        "name",
        "key",
        "duplicates",
    ],
)
def test_a_flood_of_mistakes_costs_little_and_is_cut_short(tmp_path: Path, text: str) -> None:
    with computed_within(10):
        message = refusal(tmp_path, text)
    assert len(message) < 20_000


def test_variants_merge_maps_but_replace_the_choice_of_a_text(tmp_path: Path) -> None:
    entry = (
        "{evaluate: {text: {file: x.txt}, gates: {ppl: {max: 9}}}, backend: onnxruntime, "
        "quantize: {symmetric: false}}"
    )
    (build,) = load(tmp_path, f"{GOOD.replace('backend: onnxruntime', '')}matrix:\n  - {entry}\n")
    assert build.recipe.evaluate.text == recipe.Text(file="x.txt")
    assert set(build.recipe.evaluate.gates) == {"kld_mean", "top1", "ppl"}
    assert build.recipe.quantize == {
        "block_size": 32,
        "exclude": ["*/layers.0/*"],
        "symmetric": False,
    }


def test_target_errors_point_at_the_value_wherever_it_was_said(tmp_path: Path) -> None:
    first, second = load(tmp_path, MATRIX, sets=["device=intel-npu"])
    assert problem_at(first, ("precision",), "no").message.startswith(
        f"{tmp_path / 'r.yaml'}:19:17: no\n"
    )
    assert problem_at(first, ("quantize", "block_size"), "no").message.startswith(
        f"{tmp_path / 'r.yaml'}:7:15: "
    )
    assert problem_at(second, ("backend",), "no").message.startswith(
        f"{tmp_path / 'r.yaml'}:20:28: "
    )
    error = problem_at(second, ("device",), "no", "try this")
    assert (error.message, error.hint, error.exit_code) == (
        "--set device=intel-npu: no",
        "try this",
        3,
    )


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["quantise={}"], "--set quantise={}: unknown key `quantise`; did you mean `quantize`?"),
        (["source={builtin: tiny}"], "did you mean `tiny-phi3`?"),
        (
            ["evaluate={tokens: 300, window: 400}"],
            "--set evaluate={tokens: 300, window: 400}: `window` (400)",
        ),
        (["evaluate.window=8000"], "--set evaluate.window=8000: `window` (8000) is longer"),
        (["evaluate.tokens="], "--set evaluate.tokens=: `tokens` has no value; write one"),
        (["=3"], "KEY=VALUE"),
        (["a..b=3"], "KEY=VALUE"),
        (["tags=*x"], "--set tags=*x: an alias"),
        (["matrix=[{precision: int3}]"], "--set matrix=[{precision: int3}]: unknown value `int3`"),
        (["name=12"], "--set name=12: expected text, got `12`; put it in quotes"),
    ],
)
def test_a_wrong_set_names_itself_and_no_line(tmp_path: Path, sets: list[str], words: str) -> None:
    message = refusal(tmp_path, GOOD, sets=sets)
    assert words in message
    assert not PLACE.search(message)


def test_the_last_set_wins_also_over_every_variant(tmp_path: Path) -> None:
    sets = ["precision=int3", "precision=fp32", "evaluate.tokens=9", "evaluate={tokens: 2048}"]
    (build,) = load(tmp_path, GOOD, sets=sets)
    assert (build.recipe.precision, build.recipe.evaluate.tokens) == ("fp32", 2048)
    builds = load(tmp_path, MATRIX, sets=["precision=fp16", "quantize={}"])
    assert {build.recipe.precision for build in builds} == {"fp16"}
    assert [build.name for build in builds] == [build.name for build in load(tmp_path, MATRIX)], (
        "names are the file's"
    )
    assert refusal(tmp_path, MATRIX, sets=["precision=int5"]).startswith(
        "--set precision=int5: unknown value"
    )


COMMIT = "0123456789abcdef0123456789abcdef01234567"
VALID = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,30}", fullmatch=True)
        .filter(lambda name: file_names.unfit(name) is None)
        .filter(lambda n: isinstance(document.resolve(n), str)),
        "source": st.sampled_from(
            [{"builtin": "tiny-phi3"}, {"path": "./a b"}, {"repo": "a/b", "revision": COMMIT}]
        ),
        "device": st.sampled_from(["cpu-x86_64", "./mine.yaml"]),
        "precision": st.sampled_from(["int4", "int8", "fp16", "fp32"]),
    },
    optional={
        "quantize": st.fixed_dictionaries(
            {}, optional={"block_size": st.sampled_from([16, 256]), "mixed": st.just("head")}
        ),
        "evaluate": st.fixed_dictionaries(
            {
                "tokens": st.integers(8192, 10_000_000),
                "generate": st.fixed_dictionaries(
                    {},
                    optional={
                        "prompts": st.sampled_from([{"builtin": "chats"}, {"file": "p.jsonl"}]),
                        "new_tokens": st.integers(32, 4096),
                        "limit": st.integers(1, 10_000),
                    },
                ),
            },
            optional={
                "window": st.integers(64, 8192),
                "gates": st.dictionaries(
                    st.sampled_from(list(METRICS)),
                    st.dictionaries(st.sampled_from(["min", "max"]), st.just(0.25), min_size=1),
                ),
                "text": st.sampled_from(
                    [
                        {"file": "t.txt"},
                        {"dataset": {"repo": "a/b", "revision": COMMIT, "file": "c/d"}},
                    ]
                ),
            },
        ),
        "tags": st.lists(st.sampled_from(["a", "no", "012", "x: y", "# z"])),
    },
)


def dumped(data: Mapping[str, Any]) -> str:
    """YAML with every text in quotes, since PyYAML writes by YAML 1.1's rules."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in data.items())


@settings(
    max_examples=200,
    deadline=DEADLINE_MS,
)
@given(VALID)
def test_a_recipe_written_out_loads_as_itself(tmp_path: Path, data: dict[str, Any]) -> None:
    (build,) = load(tmp_path, dumped(data))
    assert build.name == data["name"]
    whole = build.recipe.model_dump(mode="json", exclude_none=True)
    assert load(tmp_path, dumped(whole))[0].recipe == build.recipe
    assert load(tmp_path, yaml.safe_dump(whole))[0].recipe == build.recipe


@settings(
    max_examples=200,
    deadline=DEADLINE_MS,
)
@given(VALID, VALID, st.data())
def test_set_is_the_same_as_an_edit(
    tmp_path: Path, data: dict[str, Any], other: dict[str, Any], draw: Any
) -> None:
    key = draw.draw(st.sampled_from(sorted(other)))
    (edited,) = load(tmp_path, dumped(data | {key: other[key]}))
    (overridden,) = load(tmp_path, dumped(data), sets=[f"{key}={json.dumps(other[key])}"])
    assert overridden.recipe == edited.recipe
    if isinstance(other[key], dict):
        sets = [
            f"{key}={{}}",
            *(f"{key}.{inner}={json.dumps(value)}" for inner, value in other[key].items()),
        ]
        assert load(tmp_path, dumped(data), sets=sets)[0].recipe == edited.recipe


def test_nothing_is_asked_of_variants_that_are_not_wanted(tmp_path: Path) -> None:
    text = "name: two\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"
    text += "evaluate: {text: {builtin: stories}}\n"
    text += (
        "matrix:\n  - {backend: onnxruntime, precision: int8}\n  - {backend: llamacpp, "
        "precision: int4}\n"
    )
    sets = ["quantize={type: Q4_0}"]
    with pytest.raises(RecipeError, match="unknown key `type`"):
        load(tmp_path, text, sets=sets)
    (build,) = load(tmp_path, text, sets=sets, only=["llamacpp-int4"])
    assert build.recipe.backend == "llamacpp"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("package: {format: directory}\n", "what ships is always a folder now: take `format` out"),
        ("package: zip\n", "expected a mapping of keys, got text `zip`"),
        ("package: {for: ollama}\n", "expected a list, got text `ollama`"),
        ("package: {for: [1]}\n", "expected text, got `1`"),
        ("matrix: [{name: one, package: {apps: [ollama]}}]\n", "unknown key `apps`"),
    ],
)
def test_what_a_package_cannot_be_told_is_refused(
    tmp_path: Path, written: str, reason: str
) -> None:
    text = (
        "name: one\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\nnmae: two\n"
        + written
    )
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert reason in caught.value.message
    assert "r.yaml:6:" in caught.value.message


def test_a_package_is_made_for_apps_by_the_word_that_the_recipe_writes(tmp_path: Path) -> None:
    text = "name: one\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"
    (build,) = load(tmp_path, text + "package: {for: [foundry-local]}\n")
    assert build.recipe.package is not None
    assert build.recipe.package.apps == ["foundry-local"]
    kept = build.recipe.model_dump(mode="json", exclude_none=True)
    assert kept["package"] == {"for": ["foundry-local"]}
    assert recipe.recorded(kept) == build.recipe
    (without,) = load(tmp_path, text)
    assert without.recipe.package.apps == []


def test_the_recipe_of_an_earlier_versions_package_is_still_read(tmp_path: Path) -> None:
    (build,) = load(
        tmp_path, "name: one\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"
    )
    kept = build.recipe.model_dump(mode="json", exclude_none=True)
    for package in ({"format": "directory"}, "folder", None):
        assert recipe.recorded({**kept, "package": package}) == build.recipe


ASKING = "name: one\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\nevaluate:\n"


def test_prompts_are_asked_where_the_recipe_says_so_and_nowhere_else(tmp_path: Path) -> None:
    (quiet,) = load(tmp_path, ASKING + "  tokens: 4096\n")
    assert quiet.recipe.evaluate.generate is None
    (build,) = load(tmp_path, ASKING + "  generate: {}\n")
    asked = build.recipe.evaluate.generate
    assert asked is not None
    assert (asked.prompts.builtin, asked.new_tokens, asked.limit) == ("chats", 128, None)


@pytest.mark.parametrize(
    ("written", "where", "words"),
    [
        ("  generate:\n", "6:12", "`generate: {}` takes all defaults"),
        ("  generate: {prompts: {}}\n", "6:23", "give exactly one of `builtin`, `file`"),
        ("  generate: {prompts: {path: x}}\n", "6:24", "unknown key `path`"),
        ("  generate: {prompts: {builtin: chat}}\n", "6:33", "unknown value `chat`"),
        ("  generate: {new_tokens: 8}\n", "6:26", "must be at least 32"),
        ("  generate: {limit: 0}\n", "6:21", "must be at least 1"),
        ("  gates: {ended: {min: 0.9}}\n", "6:10", "nothing is asked: add `generate: {}`"),
        ("  tolerance: {loops: 0.1}\n", "6:14", "nothing is asked: add `generate: {}`"),
    ],
)
def test_what_is_wrong_with_the_questions_has_its_place(
    tmp_path: Path, written: str, where: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, ASKING + written)
    assert f"r.yaml:{where}:" in caught.value.message
    assert words in caught.value.message

"""YAML as recipes need it: limits before anything is built, core schema, and a place for every
value."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.clock import DEADLINE_MS, computed_within

from phipipe.errors import RecipeError
from phipipe.recipe import document


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        document.parse(text, "r.yaml")
    return caught.value.message


@pytest.fixture(params=["libyaml", "python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of PyYAML's parsers: wheels bring libyaml, other installs may not."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without libyaml")
    return str(request.param)


def test_every_key_and_value_has_a_place(reader: str) -> None:
    found = document.parse("# head\na: 1\nb:\n  - {c: x, d: 'y'}\n  -\n", "r.yaml")
    assert found.data == {"a": 1, "b": [{"c": "x", "d": "y"}, None]}
    assert found.keys[("a",)] == (2, 1)
    assert found.values[("a",)] == (2, 4)
    assert found.keys[("b", 0, "d")] == (4, 12)
    assert found.values[("b", 0, "d")] == (4, 15)
    assert found.place(("b", 0, "nothing")) == (4, 5)
    assert found.place(("b", 0, "d"), key=True) == (4, 12)


def test_a_problem_is_shown_with_its_line_and_a_caret() -> None:
    found = document.parse("a: 1\nb: wrong\n", "r.yaml")
    error = found.error([document.Problem(2, 4, "no such thing"), document.Problem(1, 1, "first")])
    assert (
        error.message
        == "r.yaml:1:1: first\n    a: 1\n    ^\nr.yaml:2:4: no such thing\n    b: wrong\n       ^"
    )


def test_a_long_line_is_cut_around_the_caret_and_controls_are_blanked() -> None:
    found = document.parse(f"a: {'x' * 300}\n", "r.yaml")
    _, line, caret = found.error([document.Problem(1, 250, "here")]).message.split("\n")
    assert len(line) <= 114
    assert line[caret.index("^")] == "x"


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r", "\u2028", "\x85"])
def test_lines_are_counted_as_the_scanner_counts_them(reader: str, separator: str) -> None:
    text = separator.join(["a: 1", "a: 2", ""])
    assert (
        refusal(text) == "r.yaml:2:1: key `a` stands here again; first on line 1\n    a: 2\n    ^"
    )


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: {c: 1\nd: 2\n", "2:4", "a `{` that is never closed"),
        ("a: 1\nb: [1, 2\nd: 2\n", "2:4", "a `[` that is never closed"),
        ("a: 1\nb: 'x\nc: 2\n", "2:4", "a quote that is never closed"),
        ('a: 1\nb: "x\nc: 2\nd: "y"\n', "2:4", "a quote that is never closed"),
        ("a: 1\nb\nc: 2\n", "2:1", "a key without a colon: `b`"),
        ("a: 1\nb 2\nc: 2\n", "2:1", "a key without a colon: `b 2`"),
        ("a:2\nb: 2\n", "1:1", "a key without a colon: `a:2`"),
        ("a: 1\n\tb: 2\n", "2:1", "a tab; YAML wants spaces"),
        ("a:\n\tb: 2\n", "2:1", "a tab; YAML wants spaces"),
        ("a: 1\n b: 2\n", "2:", "wrong indentation"),
        (
            "a:\n   b: 1\n  c: 2\n",
            "2:4",
            "wrong indentation, or a missing quote, comma or colon, here or on line 3",
        ),
        ("a:\n  b: 1\n c: 2\n", "3:2", "here or on line 2"),
        ("a: @x\n", "1:4", "@ cannot begin a value; put the text in quotes"),
        ("a: [1,\n", "1:", "never closed"),
        ("a: {", "1:4", "closed"),
    ],
)
def test_syntax_errors_are_said_in_a_persons_words(
    reader: str, text: str, place: str, words: str
) -> None:
    message = refusal(text)
    assert f"r.yaml:{place}" in message
    assert words in message
    assert message.endswith("^")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\na: 2\n", "2:1", "key `a` stands here again; first on line 1"),
        ("a: {b: 1, b: 2}\n", "1:11", "key `b` stands here again"),
        ('a: 1\n"a": 2\n', "2:1", "stands here again"),
        ("a: &x 1\n", "1:4", "an anchor"),
        ("a: *x\n", "1:4", "an alias"),
        ("&x a: 1\n", "1:1", "key must be plain text"),
        ("? [a]\n: 1\n", "1:3", "key must be plain text"),
        ("a: !!int '3'\n", "1:4", "a tag"),
        ("a: !python/object:os.system []\n", "1:4", "a tag"),
        ("a: ! x\n", "1:4", "a tag"),
        ("a: 1\n---\nb: 1\n", "2:1", "a second document"),
        ("a: " + "[" * 21 + "]" * 21, "1:24", "nested deeper than 20"),
        ("".join(f"{' ' * i}a:\n" for i in range(30)), "22:", "nested deeper than 20"),
        ("[" + "x," * 20_001 + "]", "1:", "more than 20000 values"),
        ("a: " + "9" * 301, "1:4", "a number with too many digits"),
        ("a: 0x" + "f" * 301, "1:4", "a number with too many digits"),
        ('a: "x\\0"\n', "1:4", "control character '\\x00'"),
        ('a: "\\e[31m"\n', "1:4", "control character '\\x1b'"),
        ('"a\\x7f": 1\n', "1:1", "control character '\\x7f'"),
        ("a: 1\nb: \x07\n", "2:4", "control character '\\x07'"),
        ("", "1:1", "the file is empty"),
        ("\n# nothing\n", "1:1", "the file is empty"),
    ],
)
def test_what_recipes_have_no_use_for_is_refused_at_its_place(
    reader: str, text: str, place: str, words: str
) -> None:
    message = refusal(text)
    assert f"r.yaml:{place}" in message
    assert words in message


def test_all_duplicate_keys_are_named_at_once() -> None:
    assert len(re.findall("stands here again", refusal("a: 1\na: 2\nb: 1\nb: 2\nb: 3\n"))) == 3


@pytest.mark.parametrize(
    "text", ["a: " + "9" * 300, "a: [" + "x," * 19_000 + "]", "a: " + "[" * 19 + "]" * 19]
)
def test_the_limits_themselves_are_allowed(text: str) -> None:
    assert document.parse(text, "r.yaml").data


def bomb(levels: int = 9) -> str:
    rows = ["l0: &l0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    rows += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "[" * 500_000,
        "{a: " * 250_000,
        "- " * 500_000,
        "a: " + "1" * 1_000_000,
        "a: " + "x" * 1_000_000,
        "x" * 1_000_000 + ": 1",
        "a: 1\n" * 200_000,
        "? " * 500_000,
        "'" + "\n" * 1_000_000,
        '"' + "\\" * 999_999,
        "#" * 1_000_000,
        "a: |\n" + " x\n" * 300_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_hostile_files_cost_little(text: str) -> None:
    tracemalloc.start()
    try:
        with computed_within(10):
            document.parse(text, "r.yaml")
    except RecipeError as error:
        assert len(error.message) < 1000  # noqa: PT017 (either outcome is right if it is cheap)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("tRUE", "tRUE"),
        ("012", 12), ("-012", -12), ("+3", 3), ("0o17", 15), ("0o18", "0o18"), ("-0o17", "-0o17"),
        ("0x1F", 31), ("0xg", "0xg"), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5),
        ("-.5e-1", -0.05), (".", "."), ("1_000", "1_000"), ("0b1", "0b1"), ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"), ("+.INF", math.inf), ("-.inf", -math.inf),
        ("1e999", math.inf), ("~", None), ("null", None), ("NULL", None), ("nULL", "nULL"),
        ("", None), ("TRUE", True), ("False", False), ("'true'", "true"), ('"12"', "12"),
        ("''", ""), ("<<", "<<"), ("=", "="), ("٣", "٣"), ("1２", "1２"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(reader: str, text: str, value: object) -> None:
    found = document.parse(f"a: {text}\n", "r.yaml").data["a"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number() -> None:
    assert math.isnan(document.resolve(".nan"))
    assert document.resolve("nan") == "nan"


@pytest.mark.parametrize(
    ("raw", "place", "words"),
    [
        (b"name: \xff\n", ":1:7: ", "byte 0xff is not UTF-8"),
        (b"a: 1\nb: caf\xe9\n", ":2:7: ", "byte 0xe9 is not UTF-8"),
        ("a: 1\n".encode("utf-16"), ":1:1: ", "UTF-16; save it as UTF-8"),
        (b"\xef\xbb\xbfa: 1\n", ":1:1: ", "byte order mark"),
        (b"a: 1\n\0", ":2:1: ", "not a text file"),
        (b"\x89PNG\r\n\x1a\n", ":1:1: ", "not a text file"),
        (b"\x7fELF\x02\x01\x01\0", ":1:1: ", "not a text file"),
        (b"#" * (2**20 + 1), ":1:1: ", "too large: a recipe has at most 1048576 bytes"),
        (b"", ":1:1: ", "empty"),
    ],
)
def test_files_that_are_no_text_are_refused_with_a_place(
    tmp_path: Path, raw: bytes, place: str, words: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError) as caught:
        document.read(path)
    assert caught.value.message.startswith(f"{path}{place}")
    assert words in caught.value.message


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1\n")
    with pytest.raises(
        RecipeError, match=r"no recipe at `.*`: .*did you mean `quickstart\.yaml`\?"
    ):
        document.read(tmp_path / "quikstart.yaml")
    with pytest.raises(RecipeError, match=r"No such file or directory$"):
        document.read(tmp_path / "mine.yaml")  # alike in `.yaml` alone
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        document.read(tmp_path)
    with pytest.raises(RecipeError, match="no device file at"):
        document.read(tmp_path / "none" / "x.yaml", "device file")
    with pytest.raises(RecipeError, match="cannot read"):
        document.read(tmp_path / "quickstart.yaml" / "x.yaml")


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(
        st.characters(
            codec="utf-8",
            exclude_categories=["Cc", "Cs"],
            exclude_characters="\ufffe\uffff\ufeff",
        )
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdefg-._", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text("abcdefg-._", min_size=1), VALUES, min_size=1, max_size=4))
def test_json_is_read_back_unchanged(data: dict[str, Any]) -> None:
    """JSON is YAML 1.2 (but for surrogate pairs in escapes): what a program writes means the same
    here."""
    assert document.parse(json.dumps(data, ensure_ascii=False), "r.yaml").data == data
    assert document.parse(json.dumps(data, indent=2, ensure_ascii=False), "r.yaml").data == data


@settings(max_examples=500, deadline=DEADLINE_MS)
@given(st.text("ab:-[]{},'\"\\#&*!|>%@` \t\n\r?~0\u2028\x85", max_size=40))
def test_what_both_readers_accept_they_read_alike(text: str) -> None:
    """What a file means does not depend on how PyYAML was built, and nothing else than RecipeError
    comes."""
    answers = []
    keep = getattr(yaml, "CSafeLoader", None)
    for loader in (keep, None):
        if loader is None and keep is not None:
            del yaml.CSafeLoader
        try:
            answers.append(document.parse(text, "r.yaml").data)
        except RecipeError as error:
            assert re.match(r"r\.yaml:\d+:\d+: ", error.message)  # noqa: PT017
            answers.append(RecipeError)
        finally:
            if keep is not None:
                yaml.CSafeLoader = keep  # type: ignore[misc]
    assert RecipeError in answers or answers[0] == answers[1]

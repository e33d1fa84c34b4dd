"""Files of prompts: what is read, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.hub import prompts as hub_prompts
from phipipe.models import prompts
from phipipe.recipe.recipe import Prompts

ASK = {"role": "user", "content": "Say hi."}
NOW = {"name": "now", "description": "Tells the time."}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def refused(folder: Path, *lines: Any) -> SourceError:
    path = folder / "p.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else dumped(x) for x in lines))
    with pytest.raises(SourceError) as caught:
        prompts.read(path)
    return caught.value


def dumped(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def test_chats_are_read_in_order_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, ASK]
    called = [ASK, {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]
    called += [{"role": "tool", "content": "4", "name": "look"}]
    lines = [{"messages": chat}, "", {"messages": called, "tools": [TOOL]}]
    path.write_bytes(b"\r\n".join(dumped(line) for line in lines) + b"\r\n")
    first, second = prompts.read(path)
    assert (first.line, second.line) == (1, 3)
    assert first.messages == chat
    assert not first.tools
    assert list(prompts.functions(second.tools)) == ["look"]


@pytest.mark.parametrize(
    ("line", "there", "words"),
    [
        ("[1]", "[1]", "expected an object with `messages`, got a list"),
        ("{", "", "not valid JSON"),
        ('{"messages": [1,, 2]}', ", 2]}", "not valid JSON"),
        ('{"a": 1, "a": 2}', '{"a"', "key 'a' stands there twice"),
        ('{"messages": [NaN]}', '{"mess', "`NaN` is no number"),
        (b'{"messages": "\xff"}', '{"mess', "not UTF-8"),
        ({"massages": [ASK]}, "[{", "unknown key `massages`; did you mean `messages`?"),
        ({"messages": []}, "[]", "`messages` is a list of messages, and here is an empty list"),
        ({"tools": []}, '{"tools"', "and here is nothing"),
        ({"messages": ["x"]}, '"x"', "an object with `role` and `content`, not text `x`"),
        ({"messages": [{"role": "usr"}]}, '"usr"', "unknown role: `usr`; it is one of"),
        ({"messages": [{"role": 3}]}, "3}", "unknown role: `3`"),
        ({"messages": [{"role": "user", "content": 5}]}, "5}", "`content` is text, and here is"),
        ({"messages": [{"role": "user"}]}, '{"role"', "`content` is text, and here is nothing"),
        ({"messages": [{**ASK, "roll": 1}]}, "1}", "unknown key `roll`; did you mean `role`?"),
        ({"messages": [{**ASK, "tool_calls": []}]}, "[]}", "stands in answers alone"),
        ({"messages": [ASK, {**ASK, "role": "system"}]}, '"system"', "message is of `system`"),
        ({"messages": [ASK], "tools": {}}, "{}}", "`tools` is a list of functions, and here is"),
        ({"messages": [ASK], "tools": [NOW, {"name": "now"}]}, '{"name": "now"}]', "two tools"),
        ({"messages": [ASK], "tools": [{"function": 1}]}, '{"function"', "with a `name`"),
        ({"messages": [ASK], "tools": [{**NOW, "parameters": 1}]}, '{"name"', "is an object"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, line: Any, there: str, words: str
) -> None:
    error = refused(tmp_path, {"messages": [ASK]}, line)
    assert words in error.message
    (problem,) = error.problems
    file, row, column = problem.place
    assert (file, row) == (str(tmp_path / "p.jsonl"), 2)
    assert f"p.jsonl:2:{column}: " in error.message
    text = line if isinstance(line, bytes) else dumped(line)
    assert column is not None
    assert text.decode("utf-8", "replace")[column - 1 :].startswith(there)
    assert error.hint


def test_every_bad_line_is_told_at_once(tmp_path: Path) -> None:
    error = refused(tmp_path, "[]", {"messages": [ASK]}, "{}", "nonsense")
    assert [problem.place.line for problem in error.problems] == [1, 3, 4]


def test_the_place_holds_where_texts_have_other_line_ends(tmp_path: Path) -> None:
    error = refused(tmp_path, '{"messages": [{"role": "user", "content": "a\u2028b"}]}', "[]")
    assert error.message.splitlines()[1].strip() == "[]"


def test_an_empty_file_has_no_prompts(tmp_path: Path) -> None:
    assert "has no prompts: it is empty" in refused(tmp_path, "", " ", "").message


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as caught:
        hub_prompts.path_of(Prompts(file="none.jsonl"), tmp_path)
    assert "evaluate.generate.prompts.file" in (caught.value.hint or "")
    with pytest.raises(SourceError, match="is a folder"):
        hub_prompts.path_of(Prompts(file="."), tmp_path)


def test_too_many_prompts_are_refused(tmp_path: Path) -> None:
    line = dumped({"messages": [ASK]})
    assert "10,001 prompts" in refused(tmp_path, *[line] * (prompts.MAX_PROMPTS + 1)).message


def test_our_own_prompts_are_prompts_and_ask_for_all_kinds() -> None:
    own = prompts.read(hub_prompts.BUILTIN["chats"])
    assert len(own) == 12
    assert any(len(one.messages) > 1 for one in own)
    called = [one for one in own if one.tools]
    assert len(called) == 2
    assert all(
        "parameters" in tool for one in called for tool in prompts.functions(one.tools).values()
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def paths(value: Any) -> list[tuple[tuple[str | int, ...], Any]]:
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    found: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    return found + [((key, *path), one) for key, v in inner for path, one in paths(v)]


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.data())
def test_a_column_is_where_its_value_begins(
    value: Any, indent: int | None, plain: bool, data: st.DataObject
) -> None:
    text = " " + json.dumps(value, ensure_ascii=plain, indent=indent).replace("\n", " ")
    where, wanted = data.draw(st.sampled_from(paths(value)))
    if len(where) == 1 and isinstance(where[0], int):
        return  # of a line that is no object, which is refused as a whole
    found, _ = json.JSONDecoder().raw_decode(text, prompts._column(text, where) - 1)
    assert found == wanted

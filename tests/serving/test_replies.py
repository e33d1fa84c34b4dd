"""Answers as documents, and tool calls in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.serving.replies import Reply, Sorted, Usage

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = '{"name": "look", "arguments": {"at": "sea"}}'
FOUND = ("look", {"at": "sea"})


def sorted_(*pieces: str, tools: Any = TOOLS, several: bool = True) -> tuple[list[str], str, Any]:
    text = Sorted(tools, several)
    shown = [text.feed(piece) for piece in pieces]
    return [piece for piece in shown if piece], *text.end()


def test_without_tools_all_is_text_at_once() -> None:
    assert sorted_("{", CALL, tools=()) == (["{", CALL], "", [])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (CALL, ""),
        (f"[{CALL}]", ""),
        (f"<tool_call>{CALL}</tool_call>", ""),
        (f"Let me see. <|tool_call|>[{CALL}]<|/tool_call|>", "Let me see. "),
        (f"[TOOL_CALLS][{CALL}]", ""),
        (f"<|python_tag|>{CALL}", ""),
        ('{"name": "look", "parameters": {"at": "sea"}}', ""),
    ],
)
def test_calls_in_every_form_are_found_however_they_are_cut(answer: str, text: str) -> None:
    for pieces in ([answer], list(answer)):
        shown, rest, found = sorted_(*pieces)
        assert ("".join(shown) + rest, found) == (text, [FOUND])


@pytest.mark.parametrize(
    "answer",
    [
        "plain words",
        '{"name": "other", "arguments": {}}',
        '{"name": "look", "arguments": 3}',
        '{"name": "look", ',
        "<tool_call>no call</tool_call>",
        "a < b and [TOOL",
        "{} {}",
        "[]",
        "[" * 5000,
        "",
    ],
)
def test_what_is_no_call_is_text(answer: str) -> None:
    for pieces in ([answer], list(answer)):
        shown, rest, found = sorted_(*pieces)
        assert ("".join(shown) + rest, found) == (answer, [])


@given(st.lists(st.text('{}[]"<|>tol_ca: \n', max_size=6), max_size=8))
def test_nothing_is_lost_where_there_is_no_call(pieces: list[str]) -> None:
    shown, rest, found = sorted_(*pieces)
    assert found or "".join(shown) + rest == "".join(pieces)


def test_one_call_alone_is_told_where_only_one_may_be() -> None:
    assert sorted_(f"[{CALL}, {CALL}]")[2] == [FOUND, FOUND]
    assert sorted_(f"[{CALL}, {CALL}]", several=False)[2] == [FOUND]


def test_text_is_shown_as_it_comes_when_tools_are_offered() -> None:
    shown, rest, _ = sorted_("Let", " me", " <tool", "s> see")
    assert (shown, rest) == (["Let", " me", " ", "<tools> see"], "")


def test_a_whole_answer_with_calls() -> None:
    reply = Reply(model="m", created=1, fingerprint="f", is_chat=True)
    document = reply.whole("", [FOUND], "stop", Usage(prompt=3, answer=4))
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    assert json.loads(call["function"]["arguments"]) == {"at": "sea"}
    assert document["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

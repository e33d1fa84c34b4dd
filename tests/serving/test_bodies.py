"""Bodies of requests: read or refused with a parameter's name, and never anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.serving import bodies
from phipipe.serving.refusals import Refusal

MODEL = "small"
BE = {"type": "text", "text": "Be "}
USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": 1}'}}


def asked(**body: Any) -> bodies.Wanted:
    return bodies.chat({"model": MODEL, "messages": [USER], **body}, MODEL)


def refused(**body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        asked(**body)
    return caught.value


def test_what_is_not_said_is_greedy_and_the_servers_usual() -> None:
    wanted = asked(temperature=None, stop=None, stream=None, n=1, logprobs=False, user="x", x={})
    assert wanted == bodies.Wanted(
        ask=bodies.Ask(messages=[USER], tools=[]), stream=False, usage=False
    )


def test_everything_that_is_said_is_taken() -> None:
    wanted = asked(
        max_tokens=3,
        max_completion_tokens=5,
        stop=["a", "b"],
        seed=-1,
        temperature=1,
        top_p=0.5,
        stream=True,
        stream_options={"include_usage": True},
        tools=[TOOL],
        parallel_tool_calls=False,
        response_format={"type": "text"},
    )
    assert wanted.ask == bodies.Ask(
        messages=[USER],
        tools=[TOOL],
        limit=5,
        stop=("a", "b"),
        temperature=1.0,
        top_p=0.5,
        seed=-1,
    )
    assert (wanted.stream, wanted.usage, wanted.several) == (True, True, False)


def test_messages_of_all_roles_become_what_templates_know() -> None:
    messages = [
        {"role": "developer", "content": [BE, {**BE, "text": "kind."}]},
        {"role": "user", "content": "hello", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    assert asked(messages=messages).ask.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**CALL, "function": {"name": "look_up", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [USER] * 3000}, "messages"),
        ({"messages": [{"role": "bishop", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [USER, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"seed": 2**63}, "seed"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": TOOL}, "tool_choice"),
        ({"model": None}, "model"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_parameters_name(
    body: dict[str, Any], param: str
) -> None:
    refusal = refused(**body)
    assert (refusal.status, refusal.param) == (400, param)
    assert f"`{param}`" in refusal.message or param in ("tools",)


def test_another_model_is_not_found() -> None:
    refusal = refused(model="gpt-4")
    assert (refusal.status, refusal.code) == (404, "model_not_found")
    assert MODEL in refusal.message


def test_tools_that_nobody_may_call_are_not_shown() -> None:
    assert asked(tools=[TOOL], tool_choice="none").ask.tools == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 10_000,
        b'{"a": "\\ud800"}',
        b'{"a": 1e999}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        bodies.parsed(raw)
    assert caught.value.status == 400


def outcome(read: Any, body: dict[str, Any]) -> bodies.Wanted | Refusal:
    try:
        wanted: bodies.Wanted = read({"model": MODEL, **body}, MODEL)
    except Refusal as refusal:
        return refusal
    return wanted


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *bodies.UNABLE,
        "messages",
        "tools",
        "tool_choice",
        "stop",
        "seed",
        "temperature",
        "top_p",
        "max_tokens",
        "stream",
        "stream_options",
        "prompt",
        "parallel_tool_calls",
    ]
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "x"]) | VALUES,
        "content": st.text(max_size=5) | VALUES,
        "tool_calls": st.lists(st.just(CALL) | VALUES, max_size=2) | VALUES,
    },
)


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.lists(LIKELY, max_size=3) | VALUES)
def test_any_body_is_read_or_refused(body: dict[str, Any], messages: Any) -> None:
    for read, given_ in (
        (bodies.chat, {"messages": messages, **body}),
        (bodies.completion, {"prompt": "x", **body}),
    ):
        said = outcome(read, given_)
        assert isinstance(said, bodies.Wanted) or said.status in (400, 404)
        told = said.document() if isinstance(said, Refusal) else said.ask.as_json()
        bodies.dumped(told)

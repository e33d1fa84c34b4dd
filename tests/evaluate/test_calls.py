"""Tool calls in answers: the forms that models write, and arguments by their schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.evaluate import calls

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city"],
        },
    },
}
NOW = {"name": "now"}
# As Phi-4-mini's page describes a tool.
BOOKING = {
    "name": "booking",
    "parameters": {
        "place": {"type": "str", "description": "Where."},
        "nights": {"type": "int", "default": 1},
    },
}
TOOLS: list[dict[str, Any]] = [WEATHER, NOW, BOOKING]
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
CALL = json.dumps(OSLO)
LLAMA = json.dumps({"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}})


@pytest.mark.parametrize(
    "answer",
    [
        f"<|tool_call|>[{CALL}]<|/tool_call|>",
        f"<|tool_call|>[{CALL}, {CALL}]<|/tool_call|>",
        f"<|tool_call|>[{CALL}]",  # the end is hidden, or the limit came
        f"[{CALL}]",  # both are hidden
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"I will look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>",
        f"[TOOL_CALLS][{CALL}]",
        f"[TOOL_CALLS] [{CALL}]",
        LLAMA,
        f"  {LLAMA}\n",
        f"{LLAMA}; {LLAMA}",
        f"<|python_tag|>{LLAMA}",
        '{"name": "now", "arguments": {}}',
        '{"name": "now"}',
        '{"type": "function", "name": "now", "parameters": {}}',
        '{"name": "booking", "arguments": {"place": "Oslo"}}',
        '{"name": "booking", "arguments": {"place": "Oslo", "nights": 2}}',
    ],
)
def test_calls_as_models_write_them_are_valid(answer: str) -> None:
    assert calls.is_valid(answer, TOOLS)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "It is sunny in Oslo.",
        "null",
        "[]",
        "<|tool_call|><|/tool_call|>",
        "<|tool_call|>[]<|/tool_call|>",
        f"<|tool_call|>[{CALL}<|/tool_call|>",
        f"<tool_call>{CALL[:-1]}</tool_call>",
        f"<tool_call>{CALL}</tool_call><tool_call>nothing</tool_call>",
        f"Here you are: {LLAMA}",
        f"{LLAMA} Is that right?",
        f"{LLAMA};",
        "```json\n" + LLAMA + "\n```",
        CALL.replace("get_weather", "get_wether"),
        CALL.replace("city", "town"),
        CALL.replace('"Oslo"', '""'),
        CALL.replace('"Oslo"', "5"),
        CALL.replace('"Oslo"', '"Oslo", "unit": "kelvin"'),
        CALL.replace('"Oslo"', '"Oslo", "days": 8'),
        CALL.replace('"Oslo"', '"Oslo", "days": true'),
        CALL.replace('"Oslo"', '"Oslo", "days": 1.5'),
        CALL.replace('"Oslo"', '"Oslo", "days": NaN'),
        CALL.replace('"Oslo"', '"Oslo", "humour": 1'),
        '{"name": "get_weather"}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}',
        '{"name": "get_weather", "arguments": {"city": "a"}, "parameters": {"city": "a"}}',
        '{"name": ["get_weather"]}',
        '{"arguments": {}}',
        '{"name": "now", "arguments": {"zone": 1}}',
        '{"name": "booking", "arguments": {"nights": 2}}',
        '{"name": "booking", "arguments": {"place": "Oslo", "nights": "2"}}',
        "[" * 100_000,
        "1" * 10_000,
    ],
)
def test_what_no_application_could_act_on_is_not_valid(answer: str) -> None:
    assert not calls.is_valid(answer, TOOLS)


SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 1.0, "", "a", "ab"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def closed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas that say of every object whether it takes more: there JSON Schema and we agree."""
    keywords = {
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=2, unique=True),
        "enum": st.lists(SCALARS, min_size=1, max_size=3),
        "const": SCALARS,
        "minimum": st.integers(-5, 5),
        "maximum": st.integers(-5, 5) | st.just(0.5),
        "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 2),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "items": inner,
        "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
        "anyOf": st.lists(inner, min_size=1, max_size=2),
        "title": st.just("of no weight"),
    }
    listed = st.fixed_dictionaries(
        {
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": st.booleans() | inner,
        }
    )
    some = st.fixed_dictionaries({}, optional=keywords)
    return some | st.builds(lambda a, b: {**a, **b}, some, listed)


SCHEMAS: st.SearchStrategy[Any] = st.recursive(st.just({}) | st.booleans(), closed, max_leaves=5)


@settings(max_examples=400, deadline=None)
@given(VALUES, SCHEMAS)
def test_a_value_fits_a_schema_as_json_schema_says(value: Any, schema: Any) -> None:
    told = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert calls.fits(value, schema) == told


@settings(max_examples=100, deadline=None)
@given(st.text() | VALUES.map(json.dumps))
def test_any_answer_is_judged(answer: str) -> None:
    assert calls.is_valid(answer, TOOLS) in (True, False)
    assert not calls.is_valid(answer, [])

"""Tool calls in answers: whether an application could act on them.

An answer is a valid call if it holds one or more calls and every one of them is JSON, names a tool
that the prompt offers, and gives it arguments that fit. Read are the forms that the models of the
field were trained on:

- Phi-4-mini: ``<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>``
- Qwen, SmolLM3: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, once or several times
- Mistral: ``[TOOL_CALLS][{"name": …, "arguments": {…}}]``
- Llama 3: ``{"name": …, "parameters": {…}}`` alone, several with ``;`` between them

Markers that a tokenizer hides (special tokens) may be missing. Text before a marker is allowed, as
models may think aloud; without a marker, the whole answer must be the call.

Arguments are checked against the tool's JSON Schema: type, enum, const, properties, required,
items, additionalProperties, anyOf, and bounds of numbers, lengths and counts. Other keywords are
ignored. Unlike JSON Schema, an object whose properties are listed takes no others unless
``additionalProperties`` says so: nobody can call a function with an argument that it does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from phipipe.models.prompts import functions
from phipipe.steps import Json

# Each with the end that closes it; an answer may stop before that.
_MARKED = re.compile(
    r"<\|tool_call\|>(.*?)(?:<\|/tool_call\|>|\Z)|<tool_call>(.*?)(?:</tool_call>|\Z)|"
    r"\[TOOL_CALLS\](.*)\Z",
    re.DOTALL,
)
_PYTHON = "<|python_tag|>"  # Llama 3.1 begins calls with it at times
ARGUMENTS = ("arguments", "parameters")
# Words for types that are no JSON Schema's: those of Python, as Phi-4-mini's page has them.
_SYNONYMS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}
_BOUNDS = (
    ("minimum", "maximum", (int, float)),
    ("minLength", "maxLength", (str,)),
    ("minItems", "maxItems", (list,)),
)
MAX_DEPTH = 64


def is_valid(answer: str, tools: Sequence[Mapping[str, Json]]) -> bool:
    """Whether ``answer`` is nothing but valid calls of ``tools`` (``models.prompts`` says how these
    look)."""
    known = functions(tools)
    try:
        calls = list(_calls(answer))
        return bool(calls) and all(_is_call(call, known) for call in calls)
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return False


def split(
    answer: str, tools: Sequence[Mapping[str, Json]]
) -> tuple[str, list[tuple[str, Mapping[str, Json]]]]:
    """``answer`` as the text before its calls, and each call's name and arguments.

    Where what stands there is no call of one of ``tools``, all of it is text. Whether arguments fit
    is not looked at: an application that is told of them can answer that.
    """
    known = functions(tools)
    try:
        read = [_named(call, known) for call in _calls(answer)]
    except (ValueError, RecursionError):
        read = []
    named = [call for call in read if call is not None]
    if not named or len(named) < len(read):
        return answer, []
    first = _MARKED.search(answer)
    return (answer[: first.start()].rstrip() if first else ""), named


def _named(
    call: Json, known: Mapping[str, Mapping[str, Json]]
) -> tuple[str, Mapping[str, Json]] | None:
    """Name and arguments of a ``call`` to what is ``known``; None for anything else."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    given = [call[name] for name in ARGUMENTS if name in call]
    arguments = given[0] if given else {}
    if call["name"] not in known or len(given) > 1 or not isinstance(arguments, dict):
        return None
    return call["name"], arguments


def _calls(answer: str) -> Iterator[Json]:
    """Every call in ``answer``, as it stands there.

    Raises:
        ValueError: something where a call must be is no JSON.
    """
    marked = ["".join(part or "" for part in found.groups()) for found in _MARKED.finditer(answer)]
    for text in marked or [answer.strip().removeprefix(_PYTHON)]:
        for value in _values(text.strip()):
            yield from value if isinstance(value, list) else [value]


def _values(text: str) -> Iterator[Json]:
    """JSON values that stand in ``text`` one after another, with ``;`` between them."""
    reader, at = json.JSONDecoder(parse_constant=_refused), 0
    while True:
        value, at = reader.raw_decode(text, at)
        yield value
        rest = text[at:].lstrip()
        if not rest:
            return
        if not rest.startswith(";"):
            raise ValueError("text after a call")
        at = len(text) - len(rest[1:].lstrip())


def _refused(constant: str) -> Json:
    raise ValueError(f"{constant} is no JSON")


def _is_call(call: Json, known: Mapping[str, Mapping[str, Json]]) -> bool:
    named = _named(call, known)
    return named is not None and fits(named[1], schema_of(known[named[0]]))


def schema_of(tool: Mapping[str, Json]) -> Mapping[str, Json]:
    """The JSON Schema of a tool's arguments. Where ``parameters`` maps names to what they are, a
    default makes one optional."""
    parameters = tool.get("parameters") or {}
    if isinstance(parameters.get("type"), str) or isinstance(parameters.get("properties"), dict):
        return {"type": "object", "properties": {}, **parameters}
    listed = {name: one for name, one in parameters.items() if isinstance(one, dict)}
    required = [name for name, one in listed.items() if "default" not in one]
    return {"type": "object", "properties": listed, "required": required}


def fits(value: Json, schema: Json, depth: int = 0) -> bool:
    """Whether a JSON value fits ``schema``, as far as the keywords above go."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return depth <= MAX_DEPTH
    choices = schema.get("anyOf")
    return (
        _is_of_type(value, schema.get("type"))
        and ("const" not in schema or _same(value, schema["const"]))
        and _is_listed(value, schema.get("enum"))
        and all(_is_within(value, schema, *bounds) for bounds in _BOUNDS)
        and (not isinstance(choices, list) or any(fits(value, one, depth + 1) for one in choices))
        and _properties_fit(value, schema, depth)
        and _items_fit(value, schema, depth)
    )


def _is_of_type(value: Json, wanted: Json) -> bool:
    if wanted is None:
        return True
    names = wanted if isinstance(wanted, list) else [wanted]
    kinds = {_SYNONYMS.get(name, name) for name in names if isinstance(name, str)}
    return bool(kinds & _types_of(value)) or not kinds & _TYPES


_HOLDING: Mapping[type, str] = {list: "array", dict: "object"}
_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}


def _types_of(value: Json) -> set[str]:
    """What JSON Schema calls a value; a whole number is one however it is written."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == value // 1 else {"number"}
    return {
        "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    }


def _same(a: Json, b: Json) -> bool:
    """Whether two JSON values are equal: unlike in Python, true is not 1."""
    return json.dumps(_plain(a), sort_keys=True) == json.dumps(_plain(b), sort_keys=True)


def _plain(value: Json) -> Json:
    return int(value) if isinstance(value, float) and value == value // 1 else value


def _is_listed(value: Json, choices: Json) -> bool:
    return not isinstance(choices, list) or any(_same(value, one) for one in choices)


def _is_within(
    value: Json, schema: Mapping[str, Json], low: str, high: str, kinds: tuple[type, ...]
) -> bool:
    if isinstance(value, bool) or not isinstance(value, kinds):
        return True
    amount: Json = len(value) if isinstance(value, str | list) else value
    least, most = (schema.get(name) for name in (low, high))
    return (not _is_number(least) or amount >= least) and (not _is_number(most) or amount <= most)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _properties_fit(value: Json, schema: Mapping[str, Json], depth: int) -> bool:
    if not isinstance(value, dict):
        return True
    listed, required = schema.get("properties"), schema.get("required")
    more = schema.get("additionalProperties", not isinstance(listed, dict))
    listed = listed if isinstance(listed, dict) else {}
    there = isinstance(required, list)
    if there and any(isinstance(name, str) and name not in value for name in required or ()):
        return False
    return all(fits(inner, listed.get(name, more), depth + 1) for name, inner in value.items())


def _items_fit(value: Json, schema: Mapping[str, Json], depth: int) -> bool:
    if not isinstance(value, list) or "items" not in schema:
        return True
    return all(fits(inner, schema["items"], depth + 1) for inner in value)

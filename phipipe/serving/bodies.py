"""Bodies of requests: what a client may ask, checked once and frozen.

What the server cannot do and a client would miss is refused with the parameter's name. What
changes no answer (``user``, ``store``, ``metadata`` …), and what is unknown, is passed over, as
clients send a lot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.serving.messages import Message, Part, Tool
from phipipe.serving.refusals import Refusal
from phipipe.steps import Json

MAX_MESSAGES, MAX_TOOLS, MAX_STOPS = 2048, 128, 4
MAX_SHOWN = 200  # characters of a client's own words in an answer
# Parameter → the values that ask for nothing; any other is refused.
UNABLE: Mapping[str, Sequence[Json]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "functions": ([],),
    "function_call": ("none",),
    "web_search_options": (),
    "response_format": ({"type": "text"},),
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the model's process is asked: a chat, or a ``prompt`` to be continued.

    ``limit``: tokens of the answer; None for the server's usual. ``temperature`` 0 is greedy.
    """

    messages: Sequence[Mapping[str, Json]] | None = None
    prompt: str | None = None
    tools: Sequence[Mapping[str, Json]] = ()
    limit: int | None = None
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def as_json(self) -> dict[str, Json]:
        """For ``answering``."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A request: what to ``ask``, and how the answer is to come; ``usage``: in a stream, too.
    ``several``: more than one tool call may be told."""

    ask: Ask
    stream: bool
    usage: bool
    several: bool = True


def _listed(stop: Json) -> Json:
    return [stop] if isinstance(stop, str) else stop


class _StreamOptions(Part):
    include_usage: bool | None = None


class _Body(Part):
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]] | None,
        BeforeValidator(_listed),
    ] = Field(None, max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)


class _Chat(_Body):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    parallel_tool_calls: bool | None = None


class _Completion(_Body):
    prompt: str = Field(min_length=1)


Kind = TypeVar("Kind", bound=_Body)


def parsed(raw: bytes) -> dict[str, Json]:
    """The JSON object of a body.

    Raises:
        Refusal: it is none, or nested without end.
    """
    try:
        value = json_files.parse(raw, Path("body"))
    except SourceError as error:
        reason = error.message.partition(" is not valid JSON: ")[2] or error.message
        raise Refusal(400, f"the body is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is no JSON object")
    return value


def chat(body: Mapping[str, Json], model: str) -> Wanted:
    """The chat that is asked for in ``body``, of a server that has ``model``.

    Raises:
        Refusal: it makes no sense, or cannot be done.
    """
    given = _read(_Chat, body, model)
    ask = Ask(
        messages=[message.as_chat() for message in given.messages],
        tools=_offered(given.tools or (), body.get("tool_choice")),
        **_manner(given),
    )
    return _wanted(given, ask, given.parallel_tool_calls is not False)


def completion(body: Mapping[str, Json], model: str) -> Wanted:
    """The text that is to be continued; raises as ``chat``."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        body = {**body, "prompt": prompt[0]}
    given = _read(_Completion, body, model)
    return _wanted(given, Ask(prompt=given.prompt, **_manner(given)))


def _wanted(given: _Body, ask: Ask, several: bool = True) -> Wanted:
    options = given.stream_options
    return Wanted(
        ask=ask,
        stream=bool(given.stream),
        usage=bool(options and options.include_usage),
        several=several,
    )


def _manner(given: _Body) -> dict[str, Json]:
    """What chats and continued texts have in common."""
    return {
        "limit": given.max_completion_tokens or given.max_tokens,
        "stop": tuple(given.stop or ()),
        "temperature": float(given.temperature or 0.0),
        "top_p": 1.0 if given.top_p is None else float(given.top_p),
        "seed": given.seed,
    }


def _read(kind: type[Kind], body: Mapping[str, Json], model: str) -> Kind:
    asked = body.get("model")
    if not isinstance(asked, str):
        raise Refusal(400, f"`model` is missing: this server has `{model}`", param="model")
    if asked != model:
        raise Refusal(
            404,
            f"there is no model `{asked[:MAX_SHOWN]}`: this server has `{model}`",
            code="model_not_found",
            param="model",
        )
    for name, nothing in UNABLE.items():
        if body.get(name) is not None and body[name] not in nothing:
            raise Refusal(
                400, f"this server cannot do `{name}`: leave it out", param=name,
                code="unsupported_parameter",
            )  # fmt: skip
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        raise _told(error) from None


def _told(error: ValidationError) -> Refusal:
    """The first thing that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    words = first["msg"].removeprefix("Value error, ")
    words = words[:1].lower() + words[1:]
    return Refusal(400, f"`{param}`: {words}", param=param, code="invalid_value")


def _offered(tools: Sequence[Tool], choice: Json) -> list[dict[str, Json]]:
    """The tools that the model is told of."""
    if choice not in (None, "auto", "none"):
        raise Refusal(
            400,
            "this server cannot force a call: `tool_choice` is `auto` or `none`",
            param="tool_choice",
            code="unsupported_value",
        )
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise Refusal(400, "two tools have one name", param="tools", code="invalid_value")
    if choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in tools]


def dumped(document: Mapping[str, Json]) -> bytes:
    """``document`` as JSON in ASCII, which holds any text there is."""
    return json.dumps(document, allow_nan=False).encode("ascii")

"""Messages and tools of a request, as OpenAI's API has them, and as chat templates know them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json


class Part(BaseModel):
    """A part of a request: what is unknown in it is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


def _flat(content: Json) -> Json:
    """Parts of text as one text."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError("this server takes text alone: parts of the type `text`")
    return "".join(part["text"] for part in content)


class _Called(Part):
    name: str
    arguments: str


class _Call(Part):
    id: str
    type: Literal["function"] = "function"
    function: _Called


class Message(Part):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_flat)] = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("`content` is missing, or null")
        return self

    def as_chat(self) -> dict[str, Json]:
        """The message as chat templates know it: arguments of calls as values."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Json] = {"role": role, "content": self.content or ""}
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        message |= {key: value for key, value in more.items() if value is not None}
        if self.tool_calls:
            message["tool_calls"] = [_as_called(call) for call in self.tool_calls]
        return message


class _Function(Part):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, object] | None = None


class Tool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    function: _Function


def _as_called(call: _Call) -> dict[str, Json]:
    """A call of an earlier answer, its arguments as a value if they are JSON."""
    try:
        arguments = json_files.parse(call.function.arguments.encode("utf-8"), Path("arguments"))
    except SourceError:
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}

"""Chat templates as transformers renders them; strangers' only in limited children."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Template:
    """One template, compiled; for a limited child, which is told the special tokens as JSON.

    With ``clock`` "off", ``strftime_now`` is not defined, as in runtimes that know no date.
    """

    def __init__(self, text: str, specials: str = "{}", clock: str = "on") -> None:
        environment = _environment()
        if clock == "off":
            del environment.globals["strftime_now"]
        self._template = environment.from_string(text)
        self._specials: dict[str, str] = json.loads(specials)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat, ready for the answer."""
        given = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        return str(self._template.render(**self._specials | given))


def _environment() -> Any:
    """Jinja as transformers sets it up: sandboxed, nothing can be changed from within."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """The tag ``{% generation %}``, which marks answers for training and changes no text."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, **given: Any) -> str:
    return json.dumps(
        value,
        ensure_ascii=False,
        **{k: v for k, v in given.items() if k in ("indent", "sort_keys")},
    )


def _raise(message: str) -> None:
    raise TemplateError(message)

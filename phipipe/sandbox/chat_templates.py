"""Chat templates as transformers renders them, and the trial that a stranger's passes before
anything else reads it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe.errors import SourceError
from phipipe.sandbox import limited, template_files

CHATS: Sequence[Sequence[str]] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


class Template:
    """One template, compiled; for a limited child, which is told the special tokens as JSON."""

    def __init__(self, text: str, specials: str = "{}") -> None:
        self._template = _environment().from_string(text)
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


def check(folder: Path) -> None:
    """Render a few chats with every chat template of the checkpoint in ``folder``.

    A template that refuses a chat in its own words passes: many know no system message.

    Raises:
        SourceError: one takes more than 2 s or 256 MiB, crashes, or does what templates may not.
    """
    for name, text in template_files.read(folder).items():
        renderer = Renderer(text, whose="checkpoint")
        try:
            for chat in CHATS:
                _try(renderer, chat, name)
        finally:
            renderer.close()


class Renderer:
    """A template in a limited child of this Python."""

    def __init__(
        self, text: str, *, whose: str = "package", specials: Mapping[str, str] | None = None
    ) -> None:
        self._child = limited.Child(
            "phipipe.sandbox.chat_templates:Template", text, json.dumps(dict(specials or {})),
            whose=whose, what="chat template", bounds=limited.RENDER,
        )  # fmt: skip

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat, ready for the answer.

        Raises:
            SourceError: it takes more than it may.
            limited.Raised: the template, or Jinja, refuses.
        """
        chat = [dict(message) for message in messages]
        return str(self._child.call("render", chat, bounds=limited.RENDER, what="chat template"))

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _try(renderer: Renderer, roles: Sequence[str], name: str) -> None:
    try:
        renderer.render([{"role": role, "content": f"Say {i}."} for i, role in enumerate(roles)])
    except limited.Raised as refusal:
        if refusal.kind == "SecurityError":
            raise SourceError(
                f"the checkpoint's chat template `{name}` is refused: {refusal.message}"
            ) from None


def _environment() -> Any:
    """Jinja as transformers sets it up: sandboxed, nothing can be changed from within."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _generation() -> Any:
    """The tag ``{% generation %}``, which marks answers for training and changes no text."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _to_json(value: object, **given: Any) -> str:
    return json.dumps(
        value,
        ensure_ascii=False,
        **{k: v for k, v in given.items() if k in ("indent", "sort_keys")},
    )


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)

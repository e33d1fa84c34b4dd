"""The trial that a stranger's chat template passes before anything else reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.sandbox import limited, template_files
from phipipe.sandbox.watch import RENDER

CLOCK = "strftime_now"  # the function by which a template tells today's date
CHATS: Sequence[Sequence[str]] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


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
    """A template in a limited child of this Python; it knows today's date if it has a ``clock``."""

    def __init__(
        self,
        text: str,
        *,
        whose: str = "package",
        specials: Mapping[str, str] | None = None,
        clock: bool = True,
    ) -> None:
        opening = limited.Opening(
            "phipipe.sandbox.jinja_templates:Template",
            (text, json.dumps(dict(specials or {})), "on" if clock else "off"),
            whose=whose,
            what="chat template",
            bounds=RENDER,
        )
        self._child = limited.Child(opening)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat, ready for the answer.

        Raises:
            SourceError: it takes more than it may.
            limited.Raised: the template, or Jinja, refuses.
        """
        chat = [dict(message) for message in messages]
        return str(self._child.call("render", chat, bounds=RENDER, what="chat template"))

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

"""Tokenizers of strangers, each in a limited child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from phipipe.sandbox import template_files
from phipipe.sandbox.limited import Child, Opening
from phipipe.sandbox.watch import RENDER, for_text
from phipipe.steps import Json


class LimitedTokenizer:
    """``Tokenizer`` over one that lives in a limited child; see ``transformers_tokenizer`` for what
    ``facts`` holds."""

    def __init__(self, child: Child) -> None:
        self._child = child
        child.start()
        self.facts = child.facts

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; with ``special``, those that the tokenizer adds to a text too
        (transformers' only)."""
        more = [True] if special else []
        ids: list[int] = self._child.call(
            "encode", text, *more, bounds=for_text(len(text)), what="tokenizer"
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""
        return str(
            self._child.call("decode", list(ids), bounds=for_text(len(ids)), what="tokenizer")
        )

    def token(self, number: int) -> str:
        """What stands in the vocabulary as ``number`` (transformers' only)."""
        return str(self._child.call("token", number, bounds=for_text(1), what="tokenizer"))

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Json]] | None = None,
    ) -> str:
        """A chat in the template; ready for the answer with ``ask`` (without it, or with ``tools``
        that the model may call, transformers' only)."""
        more: list[Json] = [] if ask and tools is None else [ask]
        more += [] if tools is None else [[dict(tool) for tool in tools]]
        chat = [dict(message) for message in messages]
        return str(self._child.call("render", chat, *more, bounds=RENDER, what="chat template"))

    def close(self) -> None:
        """End the child."""
        self._child.close()


def open_in_child(
    opener: str,
    folder: Path,
    imports: Sequence[str],
    whose: str = "package",
    python: Path | None = None,
) -> LimitedTokenizer:
    """The tokenizer that ``opener`` ("module:function") makes of ``folder``, in a limited child of
    ``python`` (default: this one).

    Raises:
        SourceError: reading it, or a text with it, took more than it may.
        StepFailed: its library refused it.
        ImportError: this Python lacks a library.
    """
    templates = template_files.read(folder) if folder.is_dir() else {}
    opening = Opening(
        opener,
        (str(folder),),
        imports=tuple(imports),
        whose=whose,
        templates=templates,
        python=python,
    )
    return LimitedTokenizer(Child(opening))

"""Text within Markdown: escaped, so that nothing a model, a tool or a recipe says changes what a
page is made of."""

from __future__ import annotations

import re
import unicodedata

BLOCK_CHARACTERS = 2000


class Safe(str):
    """Markdown that we made."""

    __slots__ = ()


def inline(value: object) -> Safe:
    """``value`` as plain text within a line of Markdown, also within a table."""
    if value is None:
        raise TypeError("the card's template prints a value that is not there")
    if isinstance(value, Safe):
        return value
    text = " ".join(_spelled_out(str(value)).split())
    text = re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<|~$]|&(?=#?\w+;)", r"\\\g<0>", text)
    # what only begins a block at a line's start
    text = re.sub(r"^(#+(?=\s|$)|>|[+-](?=[\s+-]|$))", r"\\\1", text)
    return Safe(re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text))


def code(value: object, cell: bool = False) -> Safe:
    """``value`` as a code span; ``cell`` says that it stands in a table, where a bar needs a
    backslash."""
    text = " ".join(_spelled_out(str(value)).split()) or " "
    text = text.replace("|", "\\|") if cell else text
    fence = "`" * (_longest_run(text) + 1)
    return Safe(f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}")


def block(value: object, language: str = "text", limit: int = BLOCK_CHARACTERS) -> Safe:
    """``value`` as a fenced code block that it cannot end; what is longer than ``limit`` characters
    is cut."""
    text = _spelled_out(str(value)).strip("\n") or "(nothing)"
    if len(text) > limit:
        text = text[:limit] + " […]"
    fence = "`" * max(3, _longest_run(text) + 1)
    return Safe(f"{fence}{language}\n{text}\n{fence}")


def link(value: object) -> Safe:
    """A web address as a link, anything else as a code span."""
    plain = re.fullmatch(r"https?://[\w.:-]+(/[\w./?=&%#:~+@,-]*)?", str(value), re.ASCII)
    return Safe(f"<{value}>") if plain else code(value)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _spelled_out(text: str) -> str:
    """Control and direction characters spelled out: they could hide or reorder what a reader
    sees."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" or _harmless(c) else f"\\u{{{ord(c):x}}}" for c in text)


def _harmless(c: str) -> bool:
    return c in "\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")

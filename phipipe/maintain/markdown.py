"""Markdown of generated pages: headings, tables, and words that come from code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NAMES = frozenset({"transformers", "phipipe", "auto", "optimum"})
MADE = "<!-- Generated: python -m phipipe.maintain.reference --write docs -->"


def page(title: str, intro: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([MADE, f"# {title}", intro, *(part for part in parts if part)]) + "\n"


def section(title: str, *parts: str, level: int = 2) -> str:
    """A section under its heading; empty parts are left out."""
    return "\n\n".join([f"{'#' * level} {title}", *(part for part in parts if part)])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns without any content are left out, and a table without rows is nothing."""
    lines = [[_cell(value) for value in row] for row in rows]
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    if not lines:
        return ""
    whole = [[head[i] for i in kept], ["---"] * len(kept)]
    whole += [[line[i] for i in kept] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in whole)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def code(value: object) -> str:
    """``value`` as code."""
    return f"`{value}`"


def codes(values: Iterable[object], last: str = ", ") -> str:
    """Several of them: "`a`, `b`"."""
    words = [code(value) for value in values]
    return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def prose(text: str | None) -> str:
    """Words of a docstring or a message as Markdown: one line a paragraph, code in one pair of
    backticks."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    joined = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return re.sub(r"``([^`]+)``", r"`\1`", joined)


def sentence(text: str | None) -> str:
    """``prose`` that begins with a capital letter and ends with a full stop."""
    words = prose(text)
    if not words:
        return ""
    first = words.split()[0]
    if first.isalpha() and first not in NAMES:  # a tool's name stays as it is: mlx-lm
        words = words[:1].upper() + words[1:]
    return words if words[-1] in ".!?:" else f"{words}."


def _cell(text: str) -> str:
    """Text that cannot leave its cell."""
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")

"""Tables for notebooks and for print: strangers' text is escaped, and visible."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from phipipe.visible import visible

CELL = "text-align:left;vertical-align:top"


def text(value: str) -> str:
    """``value`` as HTML shows it."""
    return html.escape(visible(value))


def paragraph(value: str) -> str:
    """``value`` on its own."""
    return f"<p>{text(value)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of ``rows`` below ``head``, all of them texts."""
    title = f'<caption style="{CELL}">{text(caption)}</caption>' if caption else ""
    cells = "".join(f'<th style="{CELL}">{text(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{title}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: str) -> str:
    return f'<td style="{CELL}">{text(value)}</td>'


def preformatted(value: str) -> str:
    """``value`` with its spaces and line breaks."""
    return f"<pre>{text(value)}</pre>"


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """``rows``, which share their names, as a table below these."""
    return table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else ""


def aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """The same as text in columns."""
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)

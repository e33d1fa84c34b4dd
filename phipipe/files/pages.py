"""How the templates of cards, boards and schedules are filled in. Each lies in its room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

ROOMS = Path(__file__).parents[1]


def environment(
    finalize: Callable[[object], object] | None = None,
    *,
    is_html: bool = False,
    folders: Iterable[str] = (),
) -> Environment:
    """What fills in a template: a name that it does not know is an error, and lines that hold a
    block alone leave no trace. Its name is that of its room and its file: `board/board.html.j2`.

    Args:
        finalize: what becomes of each value before it is printed.
        is_html: whether values are escaped for HTML.
        folders: where templates lie besides phipipe's rooms.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([ROOMS, *folders]),
        undefined=StrictUndefined,
        autoescape=is_html,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""Where the templates of cards, boards and schedules lie, and how they are filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parents[1] / "templates"


def environment(
    finalize: Callable[[object], object] | None = None,
    *,
    is_html: bool = False,
    folders: Iterable[str] = (),
) -> Environment:
    """What fills in a template: a name that it does not know is an error, and lines that hold a
    block alone leave no trace.

    Args:
        finalize: what becomes of each value before it is printed.
        is_html: whether values are escaped for HTML.
        folders: where templates lie besides those of phipipe as a whole.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([TEMPLATES, *folders]),
        undefined=StrictUndefined,
        autoescape=is_html,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""Apps that people already have, one small module each: what they want to find of a package.

The folder's listing is the list: `ai_dev_gallery.py` is the app `ai-dev-gallery`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from phipipe.errors import TargetError
from phipipe.package.layout import Built, Layout
from phipipe.suggestions import near


@cache
def names() -> tuple[str, ...]:
    """All apps."""
    return tuple(sorted(one.name.replace("_", "-") for one in pkgutil.iter_modules(__path__)))


def load(name: str) -> Layout:
    """The layout for the app ``name``.

    Raises:
        TargetError: there is no such app.
    """
    if name not in names():
        raise TargetError(
            f"there is no app `{name}`{near(name, names())}", hint=f"apps: {', '.join(names())}"
        )
    layout: Layout = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").LAYOUT
    return layout


def fitting(built: Built) -> Mapping[str, Layout]:
    """The apps that open such a package."""
    layouts = {name: load(name) for name in names()}
    return {name: one for name, one in layouts.items() if one.objection(built) is None}


def inside(backend: str) -> frozenset[str]:
    """Files made for apps that packages of ``backend`` may hold."""
    layouts = map(load, names())
    return frozenset(file for one in layouts if backend in one.backends for file in one.inside)

"""What in a recipe would bring a build closer to the original.

A wider precision spends more bits on every weight. ``Backend.finer`` options stay at int4: they
learn the weights, or keep the layers that suffer most at 8 bits. Each goes with the words by which
a build's scheme says that it has it already.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from phipipe import backends
from phipipe.recipe.recipe import PRECISIONS
from phipipe.steps import Json


def wider(backend: str, api: str, precision: str, taken: Collection[str]) -> str:
    """The next wider precision that the backend has for the unit, as a recipe says it, if it is not
    among ``taken``."""
    able = _able(backend, api)
    beyond = PRECISIONS[PRECISIONS.index(precision) + 1 :] if precision in PRECISIONS else ()
    width = next((p for p in beyond if p in able and p not in taken), None)
    return f"`precision: {width}`" if width else ""


def finer(backend: str, api: str, precision: str, scheme: str) -> str:
    """The first change of the recipe that an int4 build with this ``scheme`` does not have
    yet."""
    known = precision == "int4" and backend in backends.names()
    rows = backends.load(backend).finer if known else ()
    open_to = (
        row
        for row in rows
        if api not in row.not_on and row.told not in scheme and row.unless not in scheme
    )
    row = next(open_to, None)
    return f"`{row.section}: {_flow(row.options)}`" if row else ""


def _able(backend: str, api: str) -> frozenset[str]:
    """Precisions; a board may come from a phipipe that knows other backends."""
    if backend not in backends.names():
        return frozenset()
    return frozenset(backends.load(backend).precisions.get(api, {}))


def _flow(options: Mapping[str, Json]) -> str:
    """As YAML in one line."""
    settings = (
        f"{name}: {v if isinstance(v, str) else json.dumps(v).replace(chr(34), '')}"
        for name, v in options.items()
    )
    return f"{{{', '.join(settings)}}}"

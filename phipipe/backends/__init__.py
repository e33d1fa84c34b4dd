"""One module per runtime family; the folder listing is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from phipipe.backends.base import Backend
from phipipe.errors import TargetError


@cache
def names() -> tuple[str, ...]:
    """Names of all backends, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


def load(name: str) -> Backend:
    """Import the backend ``name``. Light: heavy packages are imported by its steps only.

    Raises:
        TargetError: there is no such backend.
    """
    if name not in names():
        raise TargetError(f"unknown backend `{name}`", hint=f"backends: {', '.join(names())}")
    module: Backend = importlib.import_module(f"{__name__}.{name}")
    return module

"""One module per runtime family; the folder listing is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from phipipe.errors import TargetError
from phipipe.suggestions import near

if TYPE_CHECKING:
    from pydantic import BaseModel

    from phipipe.backends.base import Backend
    from phipipe.device import Device, Unit
    from phipipe.recipe import Precision


class OptionsOf(Mapping[str, "type[BaseModel]"]):
    """Backend name → its ``Options``; imports a backend's module when it is asked for, no other."""

    def __getitem__(self, name: str) -> type[BaseModel]:
        return load(name).Options

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())

    def __contains__(self, name: object) -> bool:
        return name in names()


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
        raise TargetError(
            f"unknown backend `{name}`{near(name, names())}", hint=f"backends: {', '.join(names())}"
        )
    module: Backend = importlib.import_module(f"{__name__}.{name}")
    return module


def able(name: str, target: Device, unit: Unit) -> list[Precision]:
    """Precisions that backend ``name`` builds for ``unit`` of ``target``, in the unit's order."""
    module = load(name)
    table = module.PRECISIONS.get(unit.api, {}) if module.SYSTEMS & set(target.systems) else {}
    return [precision for precision in unit.precisions if precision in table]


def serving(target: Device, precision: Precision) -> list[str]:
    """Names of the backends that build ``precision`` for some unit of ``target``."""
    return [
        name
        for name in names()
        if any(precision in able(name, target, unit) for unit in target.units)
    ]

"""One folder per runtime family; the listing of this folder is the registry."""

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

    from phipipe.backends.base import AnyBackend
    from phipipe.recipe.device import Device, Unit
    from phipipe.recipe.recipe import Precision


class OptionsOf(Mapping[str, "type[BaseModel]"]):
    """Backend name → its options; imports a backend's module when it is asked for, no other."""

    def __getitem__(self, name: str) -> type[BaseModel]:
        return load(name).options

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())

    def __contains__(self, name: object) -> bool:
        return name in names()


@cache
def names() -> tuple[str, ...]:
    """Names of all backends, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))


def load(name: str) -> AnyBackend:
    """The face of the backend ``name``, imported now. Light: heavy packages are imported by its
    steps only.

    Raises:
        TargetError: there is no such backend.
    """
    if name not in names():
        raise TargetError(
            f"unknown backend `{name}`{near(name, names())}", hint=f"backends: {', '.join(names())}"
        )
    face: AnyBackend = importlib.import_module(f"{__name__}.{name}").FACE
    return face


def able(name: str, target: Device, unit: Unit) -> list[Precision]:
    """Precisions that backend ``name`` builds for ``unit`` of ``target``, in the unit's order."""
    face = load(name)
    table = face.precisions.get(unit.api, {}) if face.systems & set(target.systems) else {}
    return [precision for precision in unit.precisions if precision in table]


def serving(target: Device, precision: Precision) -> list[str]:
    """Names of the backends that build ``precision`` for some unit of ``target``."""
    return [
        name
        for name in names()
        if any(precision in able(name, target, unit) for unit in target.units)
    ]

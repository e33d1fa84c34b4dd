"""What a starter recipe builds: a backend and a precision that fit the device."""

from __future__ import annotations

import contextlib

from phipipe import backends
from phipipe.errors import RecipeError, StoreError, TargetError
from phipipe.files import shipped
from phipipe.planning.starter_source import Source
from phipipe.recipe.device import Device
from phipipe.recipe.document import read
from phipipe.recipe.recipe import PRECISIONS
from phipipe.recipe.variants import BACKEND
from phipipe.steps import Json


def _preferred() -> list[str]:
    """Names of all backends; of several that fit, the first is taken."""
    return sorted(backends.names(), key=lambda name: (backends.load(name).rank, name))


def fitting(target: Device, precision: str | None, backend: str | None) -> dict[str, Json]:
    """``backend`` and ``precision``, and the options of the device's own recipe where they are its
    own.

    Raises:
        TargetError: the device cannot do it.
    """
    asked = [backend] if backend is not None else _preferred()
    served = [{name: backends.able(name, target, unit) for name in asked} for unit in target.units]
    own = _own_recipe(target)
    for able in served:
        if own and own["precision"] == (precision or own["precision"]) in able.get(
            own["backend"], ()
        ):
            return own
        for wanted in (precision,) if precision else PRECISIONS:
            if fits := [name for name in asked if wanted in able[name]]:
                return {"backend": fits[0], "precision": wanted}
    who, what = f"`{backend}`" if backend else "no backend", precision or "anything"
    verb = "does not build" if backend else "builds"
    raise TargetError(f"{who} {verb} {what} for {target.title}", hint=_what_works(target))


def _what_works(target: Device) -> str | None:
    every = {
        name: {p for unit in target.units for p in backends.able(name, target, unit)}
        for name in _preferred()
    }
    words = [
        f"{name}: {', '.join(sorted(able, key=PRECISIONS.index))}"
        for name, able in every.items()
        if able
    ]
    return f"what works: {'; '.join(words)}" if words else target.notes


def within(source: Source, chosen: dict[str, Json]) -> dict[str, Json]:
    """``chosen`` with no more context than the model has, as far as that is known."""
    if source.context_length is None or "context" not in chosen:
        return chosen
    return {**chosen, "context": min(chosen["context"], source.context_length)}


def _own_recipe(target: Device) -> dict[str, Json]:
    """What the device's own recipe says of the target; nothing where it is not at hand."""
    if not target.recipe:
        return {}
    with contextlib.suppress(RecipeError, StoreError):
        own = read(shipped.folder("recipes") / f"{target.recipe}.yaml").data
        keys = ("backend", "precision", "context", "quantize", "calibrate")
        return {"backend": BACKEND, **{key: own[key] for key in keys if key in own}} if own else {}
    return {}

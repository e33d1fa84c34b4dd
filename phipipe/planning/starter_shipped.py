"""What shipped recipes say of a device, and of a model on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from phipipe.errors import RecipeError, StoreError
from phipipe.files import shipped as shipped_files
from phipipe.models import family
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe import shipped
from phipipe.recipe.device import Device
from phipipe.recipe.document import read
from phipipe.recipe.variants import BACKEND
from phipipe.steps import Json

TAKEN = ("backend", "unit", "precision", "context", "quantize", "weights", "calibrate")


def of_device(target: Device) -> list[dict[str, Json]]:
    """What the device's own recipe says; nothing where it has none, or where it is not at hand."""
    own = _read(target.recipe) if target.recipe else {}
    return [_taken(own)] if own else []


def of_model(target: Device, model: Checkpoint) -> list[tuple[str, dict[str, Json]]]:
    """Names of shipped recipes for models shaped like ``model``, and what they say: the device's
    own, others for ``target``, then those for the device that its own is written for."""
    member = family.of(model.config)
    if member is None:
        return []
    own = _read(target.recipe).get("device") if target.recipe else None
    found = [
        ((name != target.recipe, recipe["device"] != target.name, name), name, recipe)
        for name, recipe in _single()
        if recipe["source"].get("repo") in member.repos and recipe["device"] in (target.name, own)
    ]
    found.sort(key=lambda one: one[0])
    return [(name, _taken(recipe)) for _, name, recipe in found]


def _single() -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Shipped recipes of one build each, by name."""
    with contextlib.suppress(StoreError):
        for name in shipped.names():
            recipe = _read(name)
            if recipe and "matrix" not in recipe:
                yield name, recipe


def _read(name: str) -> Mapping[str, Json]:
    with contextlib.suppress(RecipeError, StoreError):
        return read(shipped_files.folder("recipes") / f"{name}.yaml").data or {}
    return {}


def _taken(recipe: Mapping[str, Json]) -> dict[str, Json]:
    return {"backend": BACKEND, **{key: recipe[key] for key in TAKEN if key in recipe}}

"""How a variant of a matrix is laid on the rest of its recipe."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.recipe import patterns
from phipipe.steps import Json

VARIANT_KEYS = (
    "name", "device", "unit", "backend", "precision", "context", "quantize", "weights",
    "calibrate", "evaluate", "measure", "source", "package",
)  # fmt: skip
CHOICES = ("text", "adapter", "prompts")
BACKEND = "onnxruntime"  # where a recipe names none


def lay(base: Mapping[str, Json], variant: Mapping[str, Json]) -> dict[str, Json]:
    """``variant`` laid on ``base``; another backend's ``quantize`` is not inherited."""
    over = {key: value for key, value in variant.items() if key in VARIANT_KEYS and key != "name"}
    other = over.get("backend", base.get("backend", BACKEND)) != base.get("backend", BACKEND)
    return merge(
        {key: value for key, value in base.items() if not (other and key == "quantize")}, over
    )


def merge(base: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """Maps within maps are merged; ``text``, ``adapter`` and ``prompts`` are choices of one, so
    they are replaced. Patterns of ``over`` come before those of ``base``."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and key not in CHOICES:
            inner = merge(old, value)
            if key in patterns.ENTRIES:
                inner = patterns.laid(old, {name: inner[name] for name in value}, key)
            merged[key] = inner
        else:
            merged[key] = value
    return merged

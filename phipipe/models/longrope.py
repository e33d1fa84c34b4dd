"""LongRoPE in the one spelling that every converter reads, whatever a config's.

"su" and, with its lists of factors, "yarn" are what Phi-3 called it first.
"""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.steps import Json

PHI_TYPES = ("phi", "phi3", "phimoe", "phi3_v", "phi4mm")
_FIRST_NAMES = ("su", "yarn")
_KEYS = (
    "short_factor",
    "long_factor",
    "short_mscale",
    "long_mscale",
    "original_max_position_embeddings",
)


def spelled(rope: Mapping[str, Json]) -> dict[str, Json] | None:
    """The LongRoPE that ``rope``, a config's rotary settings, asks for; None where it asks for
    none."""
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    lists = {"short_factor", "long_factor"}
    if kind not in ("longrope", *_FIRST_NAMES) or not lists <= set(rope):
        return None
    return {"type": "longrope", **{key: rope[key] for key in _KEYS if key in rope}}


def respelled(config: Mapping[str, Json]) -> dict[str, Json]:
    """What to replace in ``config`` for tools that know LongRoPE by its present name only; often
    nothing.

    transformers 5 itself refuses "su" (the original context is not handed on), mlx-lm reads "yarn"
    as no scaling.
    """
    rope = config.get("rope_scaling") or {}
    scaling = spelled(rope) if config.get("model_type") in PHI_TYPES else None
    return {} if scaling is None or rope.get("type") == "longrope" else {"rope_scaling": scaling}

"""Changes to a checkpoint's ``config.json`` without which converters would misread it, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phipipe import longrope
from phipipe.backends.base import Json

if TYPE_CHECKING:
    from phipipe.models import Checkpoint
    from phipipe.recipe import Recipe

# Whose configs phipipe can bring back into the hub's spelling.
KNOWN_TYPES = ("phi", "phi3", "phimoe")


@dataclass(frozen=True, kw_only=True)
class Fixup:
    """A change to the staged copy's ``config.json``, made without asking and recorded in the
    manifest."""

    id: str
    rule: str
    when: Callable[[Recipe, Checkpoint], bool]
    reason: str
    patch: Callable[[Checkpoint], Mapping[str, Json]]


def needed(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, dict[str, Json]]:
    """Fix-ups that the checkpoint needs on the recipe's backend: id → ``rule``, ``reason`` and
    ``patch``."""
    return {
        fix.id: {"rule": fix.rule, "reason": fix.reason, "patch": dict(fix.patch(checkpoint))}
        for fix in FIXUPS
        if fix.when(recipe, checkpoint)
    }


def _original_spelling(checkpoint: Checkpoint) -> dict[str, Json]:
    """What transformers 5 renamed or moved, where every converter looks for it."""
    config = checkpoint.config
    patch: dict[str, Json] = {
        "rope_parameters": None,
        "rope_theta": checkpoint.rope_theta,
        "partial_rotary_factor": checkpoint.partial_rotary_factor,
        "rope_scaling": None if checkpoint.rope_scaling is None else dict(checkpoint.rope_scaling),
        "original_max_position_embeddings": checkpoint.original_context_length,
    }
    if "dtype" in config:
        patch["torch_dtype"] = config["dtype"]
    if checkpoint.architecture == "PhimoeForCausalLM":
        patch["architectures"] = ["PhiMoEForCausalLM"]
    return patch


def _with_short_factors(scaling: Mapping[str, Json]) -> dict[str, Json]:
    return {**scaling, "long_factor": scaling["short_factor"]}


FIXUPS: tuple[Fixup, ...] = (  # where two replace one key, the later has the last word
    Fixup(
        id="F7",
        rule="M07",
        when=lambda r, c: r.backend != "torch" and c.resaved and c.model_type in KNOWN_TYPES,
        reason="transformers 5 saved the checkpoint again and moved its rotary settings to "
        "`rope_parameters`, where "
        "other converters do not look",
        patch=_original_spelling,
    ),
    Fixup(
        id="F9",
        rule="W06",
        when=lambda r, c: any(remark.rule == "W06" for remark in c.remarks),
        reason="config.json names no class of model, by which converters choose; its "
        "`model_type` has one class alone",
        patch=lambda c: {"architectures": [c.architecture]},
    ),
    Fixup(
        id="F8",
        rule="M13",
        when=lambda r, c: bool(longrope.respelled(c.config)),
        reason="LongRoPE under the name that Phi-3 first gave it, which transformers 5 and "
        "mlx-lm do not know any more",
        patch=lambda c: longrope.respelled(c.config),
    ),
    Fixup(
        id="F1",
        rule="M08",
        when=lambda r, c: (
            r.backend == "onnxruntime"
            and c.model_type == "phi3"
            and c.cuts
            and not c.config.get("layer_types")
        ),
        reason="onnxruntime-genai 0.17 and later apply the sliding window only to layers that "
        "config.json lists",
        patch=lambda c: {"layer_types": ["sliding_attention"] * c.layers},
    ),
    Fixup(
        id="F2",
        rule="M11",
        when=lambda r, c: (
            r.backend == "mlx"
            and c.rope_scaling is not None
            and r.evaluate.window <= c.original_context_length
        ),
        reason="mlx-lm applies LongRoPE's long factors to every prompt; with the short ones in "
        "their place it is exact "
        "up to the original context length",
        patch=lambda c: {"rope_scaling": _with_short_factors(c.rope_scaling or {})},
    ),
    Fixup(
        id="F3",
        rule="R06",
        when=lambda r, c: (
            r.backend == "litert" and c.model_type == "phi3" and c.sliding_window is not None
        ),
        reason="litert-torch cannot export Phi-3's sliding window; the exported cache is never "
        "longer than it",
        patch=lambda c: {"sliding_window": None},
    ),
)

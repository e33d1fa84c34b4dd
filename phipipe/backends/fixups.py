"""Changes to a checkpoint's ``config.json`` without which converters would misread it, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe import backends
from phipipe.backends.rules import Fixup
from phipipe.models import layouts, longrope, rotary
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

# Whose configs phipipe can bring back into the hub's spelling.
KNOWN_TYPES = frozenset(
    {*(layout.model_type for layout in layouts.LAYOUTS.values())} - {"phi3_v", "phi4mm"}
)


def needed(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, dict[str, Json]]:
    """Fix-ups that the checkpoint needs on the recipe's backend: id → ``rule``, ``reason`` and
    ``patch``."""
    return {
        fix.id: {"rule": fix.rule, "reason": fix.reason, "patch": dict(fix.patch(checkpoint))}
        for fix in (*FIXUPS, *backends.load(recipe.backend).fixups)
        if fix.when(recipe, checkpoint)
    }


def _original_spelling(checkpoint: Checkpoint) -> dict[str, Json]:
    """What transformers 5 renamed or moved, where every converter looks for it."""
    config = checkpoint.config
    patch: dict[str, Json] = {
        "rope_parameters": None,
        "rope_theta": checkpoint.rope_theta,
        "partial_rotary_factor": checkpoint.partial_rotary_factor,
        "rope_scaling": rotary.respelled(config),
        "original_max_position_embeddings": checkpoint.original_context_length,
    }
    if "dtype" in config:
        patch["torch_dtype"] = config["dtype"]
    if checkpoint.architecture == "PhimoeForCausalLM":
        patch["architectures"] = ["PhiMoEForCausalLM"]
    return patch


FIXUPS: tuple[Fixup, ...] = (  # where two replace one key, the later has the last word
    Fixup(
        id="F7",
        rule="M07",
        when=lambda r, c: (
            c.resaved and c.model_type in KNOWN_TYPES and not backends.load(r.backend).reads_resaved
        ),
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
)

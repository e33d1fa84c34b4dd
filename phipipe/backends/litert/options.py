"""What a recipe can ask of LiteRT, its `quantize:` section, and what stands where it asks for
nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from phipipe.backends.widths import Mapped

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
# A cache of fixed length is taken whole when the model is opened: 2,048 tokens are what a phone can
# spare.
CONTEXT = 2048
PREFILL = 128  # litert-torch's own
GROUP = 32


# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "scheme": "dynamic for speed, the only sensible one on phones. weight_only shows how much the "
    "integer arithmetic costs.",
    "group_size": "32 is closer; 128 or -1 are a little smaller and faster.",
    "map": '`{"layers.*.mlp.down_proj": {bits: 8}}` where 4 bits cost too much. 4 bits in groups '
    "of 32 to 256 or by row (-1), 8 bits by row, or 16 for floats.",
    "prefill_length": "128 suits chats. Longer ones read long prompts faster.",
    "context_length": "As long as prompt and answer together; its memory is taken whole at the "
    "start.",
    "format": "litertlm for LiteRT-LM on phones and desktops. tflite where your own program "
    "drives the model.",
}


class Options(Mapped):
    """LiteRT's own knobs."""

    scheme: Literal["dynamic", "weight_only"] = Field(
        default="dynamic",
        description="dynamic: integer arithmetic, activations rounded to 8 bits on the fly. "
        "weight_only: weights are "
        "turned into floats before use; closer to the original and several times slower.",
    )
    group_size: Literal[-1, 32, 64, 128] | None = Field(
        default=None,
        description="Weights that share one scale; -1: a whole row. Groups are for dynamic int4 "
        "only. Without it 32 "
        "there, and a whole row elsewhere.",
    )
    prefill_length: int | None = Field(
        default=None, ge=1, description="Prompt tokens that are read at once. Without it 128."
    )
    context_length: int | None = Field(
        default=None,
        ge=1,
        description="Length of the cache, prompt and answer together, which takes its memory "
        "whole at the start. "
        "Without it 2048, or what the model can where that is less.",
    )
    format: Literal["litertlm", "tflite"] = Field(
        default="litertlm",
        description="litertlm: one bundle of model, tokenizer and chat template for LiteRT-LM "
        "(Android, desktop). "
        "tflite: the bare model.",
    )


def group_of(recipe: Recipe, options: Options) -> int:
    """Groups of 32 wherever there are kernels for groups: on the embedded model 2.3e-3 where rows
    give 3.5e-3."""
    grouped = recipe.precision == "int4" and options.scheme == "dynamic"
    return options.group_size or (GROUP if grouped else -1)


def limit_of(checkpoint: Checkpoint) -> int:
    """Positions up to which the exported model computes what the original does."""
    limits = [checkpoint.context_length]
    if checkpoint.longrope:
        limits.append(checkpoint.original_context_length)
    if checkpoint.sliding_window:
        limits.append(checkpoint.sliding_window)
    return min(limits)


def context_of(options: Options, checkpoint: Checkpoint) -> int:
    return options.context_length or min(CONTEXT, limit_of(checkpoint))


def prefill_of(options: Options, checkpoint: Checkpoint) -> int:
    return options.prefill_length or min(PREFILL, context_of(options, checkpoint))

"""How large a quantized model becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends.mlx.options import Options, bits_of, group_of

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

HIGH = {"mixed_2_6": 6, "mixed_3_4": 4, "mixed_3_6": 6, "mixed_4_6": 6}
LOW = {"mixed_2_6": 2, "mixed_3_4": 3, "mixed_3_6": 3, "mixed_4_6": 4}


def stored_bytes(recipe: Recipe, options: Options, checkpoint: Checkpoint) -> int:
    """Estimate: all weights at their bits; per group a scale and a bias of 16 bits, or a scale of 8
    where the mode has no bias."""
    shared = (32 if options.mode == "affine" else 8) / group_of(options)
    low = LOW.get(options.mixed) or bits_of(recipe, options)
    more = HIGH.get(options.mixed, low) - low
    bits = checkpoint.parameters * (low + shared) + _raised(checkpoint) * more
    return int(bits / 8)


def _raised(checkpoint: Checkpoint) -> int:
    """Weights that mlx-lm's mixed schemes keep wider: the LM head where it has a matrix of its own,
    and in some layers the down projection and what gives the values of attention, which in phi3 is
    one matrix with queries and keys."""
    hidden, size, eighth = checkpoint.hidden_size, checkpoint.head_size, checkpoint.layers // 8
    chosen = sum(
        i < eighth or i >= 7 * checkpoint.layers // 8 or (i - eighth) % 3 == 2
        for i in range(checkpoint.layers)
    )
    heads = checkpoint.kv_heads
    if checkpoint.model_type == "phi3":
        heads = checkpoint.heads + 2 * checkpoint.kv_heads
    down = max(1, checkpoint.experts) * checkpoint.intermediate_size
    head = 0 if checkpoint.tied else checkpoint.vocab_size
    return hidden * (head + chosen * (heads * size + down))

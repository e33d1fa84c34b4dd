"""How large the graphs of a model get, and into how many parts that splits its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phipipe.backends.qnn.options import Options

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

# Of weights in one binary: the HTP addresses 32 bits, and needs room for what it computes.
PART_BYTES = 2**30


def layer_bytes(checkpoint: Checkpoint, bits: int, kept: Sequence[str]) -> int:
    """Bytes of one layer's linears at ``bits``, those whose name contains a part of ``kept`` at
    8."""
    c = checkpoint
    heads, groups, inner = c.heads * c.head_size, c.kv_heads * c.head_size, c.intermediate_size
    outputs = {"self_attn.q_proj": heads, "self_attn.k_proj": groups, "self_attn.v_proj": groups}
    outputs |= {
        "self_attn.o_proj": heads,
        "mlp.gate_proj": inner,
        "mlp.up_proj": inner,
        "mlp.down_proj": inner,
    }
    widths = {
        name: 8 if any(part in f"{name}.weight" for part in kept) else bits for name in outputs
    }
    return sum(widths[name] * count * c.hidden_size // 8 for name, count in outputs.items())


def parts_of(checkpoint: Checkpoint) -> int:
    """As few parts as keep the weights of each within ``PART_BYTES``; a single layer is never
    split.

    Counted at 8 bits in any precision, so that all start from the same float graphs.
    """
    most = max(1, PART_BYTES // layer_bytes(checkpoint, 8, []))
    return -(-checkpoint.layers // most)


def sizes(
    recipe: Recipe, options: Options, checkpoint: Checkpoint, bits: int, parts: int
) -> dict[str, int]:
    """Bytes of: the graphs in "float" and in "fixed" point, and of those the "embedding" and the
    largest "part"; the largest "tensor" in float; in calibration, what passes the "border" between
    parts, the "caches" of one part, and its weights, "mapped" from its file."""
    c, kept = checkpoint, options.keep_8bit if bits == 4 else []
    table, longest = c.vocab_size * c.hidden_size, -(-c.layers // parts)
    head = table * (8 if bits == 8 or any(part in "lm_head.weight" for part in kept) else 4) // 8
    layer = layer_bytes(c, bits, kept)
    return {
        "float": 4 * (c.parameters + (table if c.tied else 0)) + 2**20,
        "fixed": 4 * table + head + c.layers * layer + 2**20,
        "embedding": 4 * table,
        "part": max(head, longest * layer),
        "tensor": 4 * max(table, 2 * c.intermediate_size * c.hidden_size),
        "border": 4 * recipe.calibrate.tokens * c.hidden_size,
        "caches": 4 * longest * 2 * c.kv_heads * c.head_size * options.context_length,
        "mapped": max(4 * table, longest * layer_bytes(c, 32, [])),
    }

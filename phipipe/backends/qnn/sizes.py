"""How large the graphs of a model get, and into how many parts that splits its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from phipipe.backends.qnn.options import Options
from phipipe.backends.qnn.stages import stages_of
from phipipe.backends.widths import Stored, Stores, Width, of
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.backends.base import Job
    from phipipe.models.checkpoint import Checkpoint

# Of weights in one binary: the HTP addresses 32 bits, and needs room for what it computes.
PART_BYTES = 2**30
# The graphs hold linears in integers alone, with one scale for each output, and the embedding in
# floats: the CPU looks it up.
STORES = Stores(
    groups={4: (-1,), 8: (-1,)},
    group_bits=32,
    floats=False,
    fixed=frozenset({linears.EMBEDDING}),
    presets=frozenset({"keep_8bit"}),
)


def layer_bytes(
    checkpoint: Checkpoint,
    bits: int,
    kept: Sequence[str],
    widths: Mapping[str, Stored] | None = None,
    layer: int = 0,
) -> int:
    """Bytes of a layer's linears at ``bits``, those whose name contains a part of ``kept`` at 8,
    those of ``layer`` in ``widths`` as these say."""
    c = checkpoint
    heads, groups, inner = c.heads * c.head_size, c.kv_heads * c.head_size, c.intermediate_size
    outputs = {"self_attn.q_proj": heads, "self_attn.k_proj": groups, "self_attn.v_proj": groups}
    outputs |= {
        "self_attn.o_proj": heads,
        "mlp.gate_proj": inner,
        "mlp.up_proj": inner,
        "mlp.down_proj": inner,
    }
    total = 0
    for name, count in outputs.items():
        usual = 8 if any(part in f"{name}.weight" for part in kept) else bits
        mapped = of(f"layers.{layer}.{name}", widths or {})
        total += (usual if mapped is None else bits_of(mapped)) * count * c.hidden_size // 8
    return total


def bits_of(stored: Stored) -> int:
    """Bits of a weight."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    return stored.bits


def weight_bits(job: Job[Options], name: str, stored: Stored, columns: int) -> float:
    """``Backend.weight_bits``; the plan counts no scales, of which a row has one."""
    return bits_of(stored)


def parts_of(checkpoint: Checkpoint) -> int:
    """As few parts as keep the weights of each within ``PART_BYTES``; a single layer is never
    split.

    Counted at 8 bits in any precision, so that all start from the same float graphs.
    """
    most = max(1, PART_BYTES // layer_bytes(checkpoint, 8, []))
    return -(-checkpoint.layers // most)


def stage_bytes(job: Job[Options], bits: int, parts: int) -> dict[str, int]:
    """Bytes of the weights of each stage in fixed point."""
    c, widths = job.checkpoint, job.widths
    kept = job.options.keep_8bit if bits == 4 else []
    usual = 8 if bits == 8 or any(part in "lm_head.weight" for part in kept) else 4
    head = bits_of(widths[linears.HEAD]) if linears.HEAD in widths else usual
    return {
        stage: sum(layer_bytes(c, bits, kept, widths, layer) for layer in layers)
        if layers
        else head * c.vocab_size * c.hidden_size // 8
        for stage, layers in stages_of(c.layers, parts).items()
    }


def stage_parameters(checkpoint: Checkpoint, parts: int) -> dict[str, int]:
    """How many weights the linears of each stage have."""
    layer, head = layer_bytes(checkpoint, 8, []), checkpoint.vocab_size * checkpoint.hidden_size
    found = stages_of(checkpoint.layers, parts)
    return {stage: len(layers) * layer if layers else head for stage, layers in found.items()}


def sizes(job: Job[Options], parts: int) -> dict[str, int]:
    """Bytes of: the graphs in "float", and of those the "embedding"; the largest "tensor" in float;
    in calibration, what passes the "border" between parts, the "caches" of one part, and its
    weights, "mapped" from its file."""
    c, recipe, options = job.checkpoint, job.recipe, job.options
    table, longest = c.vocab_size * c.hidden_size, -(-c.layers // parts)
    return {
        "float": 4 * (c.parameters + (table if c.tied else 0)) + 2**20,
        "embedding": 4 * table,
        "tensor": 4 * max(table, 2 * c.intermediate_size * c.hidden_size),
        "border": 4 * recipe.calibrate.tokens * c.hidden_size,
        "caches": 4 * longest * 2 * c.kv_heads * c.head_size * options.context_length,
        "mapped": max(4 * table, longest * layer_bytes(c, 32, [])),
    }

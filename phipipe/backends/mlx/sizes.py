"""How wide matrices are stored, and how large a quantized model becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe.backends.base import Job
from phipipe.backends.mlx.options import GROUPS as MODES
from phipipe.backends.mlx.options import Options, bits_of, group_of
from phipipe.backends.widths import FLOAT_BITS, Stored, Stores, Width
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

HIGH = {"mixed_2_6": 6, "mixed_3_4": 4, "mixed_3_6": 6, "mixed_4_6": 6}
LOW = {"mixed_2_6": 2, "mixed_3_4": 3, "mixed_3_6": 3, "mixed_4_6": 4}
# The affine mode's. The smallest group comes first since it divides what the others do: where the
# map leaves groups out, X08 checks the options' own. A scale and a bias have 16 bits each.
GROUPS = (32, 64, 128)
STORES = Stores(
    groups=dict.fromkeys((2, 3, 4, 5, 6, 8), GROUPS),
    group_bits=32,
    learned=True,
    presets=frozenset({"mixed"}),
)
Widths = Mapping[str, tuple[int, int]]
"""Matrix (``models.linears``) → bits, and weights that share a scale; of floats, 16 and 0."""


def widths_of(job: Job[Options]) -> dict[str, tuple[int, int]]:
    """The width of each matrix that the map names; without groups of its own, it has those of the
    others."""
    found: dict[str, tuple[int, int]] = {}
    usual = usual_group(job.options.mode, job.options.group_size)
    for name, width in job.widths.items():
        assert isinstance(width, Width)  # STORES has no types of its own
        is_float = width.bits == FLOAT_BITS
        found[name] = (width.bits, 0 if is_float else width.group_size or usual)
    return found


def usual_group(mode: str, size: int | None) -> int:
    """Weights of a mapped matrix that share a scale where the options have this ``mode`` and
    ``size``: nvfp4 has groups of 16, and affine has not."""
    return max(GROUPS[0], size or MODES[mode])


def stored_bytes(job: Job[Options]) -> int:
    """Estimate: all weights at their bits; per group a scale and a bias of 16 bits, or a scale of 8
    where the mode has no bias; and the matrices of the map as it says."""
    options, checkpoint, widths = job.options, job.checkpoint, job.widths
    shapes = linears.shapes(checkpoint) if widths else {}
    sizes = {name: shapes[name][0] * shapes[name][1] for name in widths}
    shared = (32 if options.mode == "affine" else 8) / group_of(options)
    low = LOW.get(options.mixed) or bits_of(job.recipe, options)
    more = HIGH.get(options.mixed, low) - low
    raised = _raised(checkpoint) - sum(
        size for name, size in sizes.items() if _is_raised(name, checkpoint.layers)
    )
    bits = (checkpoint.parameters - sum(sizes.values())) * (low + shared) + raised * more
    for name, stored in widths.items():
        bits += sizes[name] * weight_bits(job, name, stored, shapes[name][1])
    return int(bits / 8)


def weight_bits(job: Job[Options], name: str, stored: Stored, columns: int) -> float:
    """Bits of a weight with its share of scale and bias (``Backend.weight_bits``)."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    if stored.bits == FLOAT_BITS:
        return FLOAT_BITS
    size = stored.group_size or usual_group(job.options.mode, job.options.group_size)
    return stored.bits + STORES.group_bits / size


def _raised(checkpoint: Checkpoint) -> int:
    """Weights that mlx-lm's mixed schemes keep wider: the LM head where it has a matrix of its own,
    and in some layers the down projection and what gives the values of attention, which in phi3 is
    one matrix with queries and keys."""
    hidden, size = checkpoint.hidden_size, checkpoint.head_size
    chosen = sum(_is_chosen(i, checkpoint.layers) for i in range(checkpoint.layers))
    heads = checkpoint.kv_heads
    if checkpoint.model_type == "phi3":
        heads = checkpoint.heads + 2 * checkpoint.kv_heads
    down = max(1, checkpoint.experts) * checkpoint.intermediate_size
    head = 0 if checkpoint.tied else checkpoint.vocab_size
    return hidden * (head + chosen * (heads * size + down))


def _is_raised(name: str, layers: int) -> bool:
    layer = linears.layer_of(name)
    if layer is None:
        return name == linears.HEAD
    return _is_chosen(layer, layers) and name.endswith(("v_proj", "down_proj"))


def _is_chosen(layer: int, layers: int) -> bool:
    """Whether the mixed schemes widen something of this layer."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

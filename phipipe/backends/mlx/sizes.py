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

# Bits of most matrices, and of those that llama.cpp's mixtures keep wider, too: the schemes of
# mlx_lm.convert.mixed_quant_predicate_builder.
MIXED: Mapping[str, tuple[Width, Width]] = {
    "mixed_2_6": (Width(bits=2), Width(bits=6)),
    "mixed_3_4": (Width(bits=3), Width(bits=4)),
    "mixed_3_6": (Width(bits=3), Width(bits=6)),
    "mixed_4_6": (Width(bits=4), Width(bits=6)),
}
# The affine mode's. The smallest group comes first since it divides what the others do: where the
# map leaves groups out, X08 checks the options' own. A scale and a bias have 16 bits each.
GROUPS = (32, 64, 128)
STORES = Stores(
    groups=dict.fromkeys((2, 3, 4, 5, 6, 8), GROUPS),
    group_bits=32,
    learned=True,
    presets=frozenset({"mixed"}),
)


def widths_of(job: Job[Options]) -> dict[str, Stored]:
    """The width of each matrix that the map names; with a preset, which is a map of all matrices,
    that of the others, too."""
    return {**_preset(job.options, job.checkpoint), **job.widths}


def _preset(options: Options, checkpoint: Checkpoint) -> dict[str, Width]:
    """Matrix → its width in a mixed scheme. Wider are the LM head where it has a matrix of its own,
    and in some layers the down projection and what gives the values of attention, which in phi3 is
    one matrix with queries and keys."""
    if options.mixed == "none":
        return {}
    low, high = MIXED[options.mixed]
    layers, names = checkpoint.layers, linears.shapes(checkpoint)
    return {name: high if _is_raised(name, layers) else low for name in names}


def usual_group(mode: str, size: int | None) -> int:
    """Weights of a mapped matrix that share a scale where the options have this ``mode`` and
    ``size``: nvfp4 has groups of 16, and affine has not."""
    return max(GROUPS[0], size or MODES[mode])


def stored_bytes(job: Job[Options]) -> int:
    """Estimate: all weights at their bits; per group a scale and a bias of 16 bits, or a scale of 8
    where the mode has no bias; and the matrices of ``widths_of`` as it says."""
    options, checkpoint, widths = job.options, job.checkpoint, widths_of(job)
    shapes = linears.shapes(checkpoint) if widths else {}
    sizes = {name: shapes[name][0] * shapes[name][1] for name in widths}
    shared = (32 if options.mode == "affine" else 8) / group_of(options)
    rest = checkpoint.parameters - sum(sizes.values())
    bits = rest * (bits_of(job.recipe, options) + shared)
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


def _is_raised(name: str, layers: int) -> bool:
    layer = linears.layer_of(name)
    if layer is None:
        return name == linears.HEAD
    return _is_chosen(layer, layers) and name.endswith(("v_proj", "down_proj"))


def _is_chosen(layer: int, layers: int) -> bool:
    """Whether the mixed schemes widen something of this layer."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

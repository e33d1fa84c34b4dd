"""How wide matrices are stored, and how large the whole becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends.litert.options import BITS, group_of
from phipipe.backends.widths import FLOAT_BITS, Stored, Stores, Width
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.backends.base import Job
    from phipipe.backends.litert.options import Options

# What LiteRT 2.3's kernels compute: XNNPACK has products in groups of 4 bits alone, and so have
# lookups (those of 2 bits, too); 8 bits share one scale in a row. A row comes first since it always
# fits: where the map leaves groups out at 4 bits, R08 checks the options' own. Scales are above 0:
# XNNPACK refuses a model with others.
STORES = Stores(
    groups={4: (-1, 32, 64, 128, 256), 8: (-1,)},
    group_bits=16,
    learned=True,
    positive=True,
)
ROW_BITS = 32  # of the scale of a whole row
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number


def widths_of(job: Job[Options]) -> dict[str, tuple[int, int]]:
    """Bits and weights that share a scale (-1: a row) of each matrix that the map names, or of all
    where weights are learned. A head that is tied lies where the embedding does."""
    return {name: (_width(one).bits, size_of(job, _width(one))) for name, one in job.widths.items()}


def _width(stored: Stored) -> Width:
    assert isinstance(stored, Width)  # STORES has no types of its own
    return stored


def size_of(job: Job[Options], width: Width) -> int:
    """Weights that share a scale: at 4 bits, without groups of its own, as the options say."""
    if width.bits != 4:
        return -1
    return width.group_size or group_of(job.recipe, job.options)


def weight_bits(job: Job[Options], name: str, stored: Stored, columns: int) -> float:
    """Bits of a weight with its share of the scale (``Backend.weight_bits``)."""
    width = _width(stored)
    return _bits(width.bits, size_of(job, width), columns)


def _bits(bits: int, group: int, columns: int) -> float:
    if bits == FLOAT_BITS:
        return FLOAT_BITS
    return bits + (ROW_BITS / columns if group < 0 else STORES.group_bits / group)


def stored_bytes(job: Job[Options]) -> int:
    """Estimate: all weights at the precision's bits with their share of scales, and the matrices
    that the map names as it says."""
    checkpoint, widths = job.checkpoint, job.widths
    shapes = linears.shapes(checkpoint) if widths else {}
    sizes = {name: shapes[name][0] * shapes[name][1] for name in widths}
    group = group_of(job.recipe, job.options)
    usual = _bits(BITS[job.recipe.precision], group, checkpoint.hidden_size)
    total = usual * (checkpoint.parameters - sum(sizes.values()))
    for name, stored in widths.items():
        total += sizes[name] * weight_bits(job, name, stored, shapes[name][1])
    return int(total / 8)

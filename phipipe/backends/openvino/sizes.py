"""How wide matrices are stored, and how large the whole becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe.backends.base import Job
from phipipe.backends.openvino.options import Options
from phipipe.backends.widths import FLOAT_BITS, Stored, Stores, Width
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

GROUPS = (-1, 32, 64, 128, 256)
# Plugins keep each of them compressed, in MatMul and Gather alike. A row comes first since it
# always fits: where the map leaves groups out at 4 bits, V13 checks the options' own.
STORES = Stores(
    groups={4: GROUPS, 8: GROUPS},
    group_bits=16,
    learned=True,
    presets=frozenset({"ratio", "sensitivity", "all_layers"}),
)
Widths = Mapping[str, tuple[int, int]]
"""Matrix (``models.linears``) → bits, and weights that share a scale (-1: a row)."""


def widths_of(job: Job[Options]) -> dict[str, tuple[int, int]]:
    """The width of each matrix that the map names. Without groups of its own, it has the options'
    at 4 bits, and a scale per row at 8, as ``backup`` has.

    ``ratio`` is no such map: NNCF ranks the matrices by their values, and by what runs through
    them, neither of which the plan knows.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, width in job.widths.items():
        assert isinstance(width, Width)  # STORES has no types of its own
        found[name] = (width.bits, size_of(width, job.options.group_size))
    return found


def size_of(width: Width, usual: int) -> int:
    """Weights that share a scale, where the options say ``usual`` (-1: a row)."""
    if width.bits == FLOAT_BITS or (width.group_size is None and width.bits != 4):
        return -1
    return width.group_size or usual


def stored_bytes(job: Job[Options], bits: int) -> int:
    """What the weights take at 8 bits, or at 4 but for embeddings, LM head and what is outside of
    ``ratio``; and the matrices of the map as it says."""
    options, checkpoint, widths = job.options, job.checkpoint, job.widths
    shapes = linears.shapes(checkpoint) if widths else {}
    sizes = {name: shapes[name][0] * shapes[name][1] for name in widths}
    rest = checkpoint.parameters - sum(sizes.values())
    mapped = sum(
        sizes[name] * weight_bits(job, name, stored, shapes[name][1])
        for name, stored in widths.items()
    )
    if bits == 8:
        return rest + int(mapped / 8)
    within = sum(size for name, size in sizes.items() if linears.layer_of(name) is not None)
    ends = 0 if options.all_layers else _ends(checkpoint) - (sum(sizes.values()) - within)
    four = int(options.ratio * (rest - ends))
    group = options.group_size if options.group_size > 0 else checkpoint.hidden_size
    scale_bits = 16 if _is_symmetric(job) else 20  # with a zero point of 4 bits
    wider = (rest - four) * (2 if options.backup == "none" else 1)
    return four // 2 + four * scale_bits // (8 * group) + wider + int(mapped / 8)


def _ends(checkpoint: Checkpoint) -> int:
    return checkpoint.vocab_size * checkpoint.hidden_size * (1 if checkpoint.tied else 2)


def _is_symmetric(job: Job[Options]) -> bool:
    return job.options.symmetric or job.learns


def weight_bits(job: Job[Options], name: str, stored: Stored, columns: int) -> float:
    """Bits of a weight with its share of scale and zero point (``Backend.weight_bits``)."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    if stored.bits == FLOAT_BITS:
        return FLOAT_BITS
    size = size_of(stored, job.options.group_size)
    group_bits = STORES.group_bits + (0 if _is_symmetric(job) else stored.bits)
    return stored.bits + group_bits / (columns if size < 0 else size)

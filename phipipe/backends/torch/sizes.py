"""How large a packed checkpoint will be: light, for plans."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.backends.torch.options import STORES, Options
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.models import linears
from phipipe.models.checkpoint import Checkpoint


def packed_bytes(
    bits: int,
    options: Options,
    checkpoint: Checkpoint,
    mapped: Mapping[str, Stored],
    learned: bool = False,
) -> int:
    """Estimate: integers with their scales, all else as the source has it; ``mapped`` are the
    matrices that the map names. A ``learned`` embedding is in floats that hold it exactly."""
    if not mapped:
        table = checkpoint.vocab_size * checkpoint.hidden_size
        return (bits + 1) * checkpoint.parameters // 8 + 4 * table
    usual = Width(bits=bits, group_size=options.group_size)
    floats = 8 * checkpoint.weight_bytes / max(1, checkpoint.parameters)
    total = 8.0 * checkpoint.weight_bytes
    for name, (rows, columns) in linears.shapes(checkpoint).items():
        width = mapped.get(name, usual if linears.layer_of(name) is not None else None)
        if not isinstance(width, Width) or width.bits == FLOAT_BITS:
            continue
        stored = STORES.bits_per_weight(width, columns)
        if name == linears.EMBEDDING:  # code times scale has 10 or 15 bits
            stored = (16 if width.bits == 4 else 32) if learned else floats
        total += rows * columns * (stored - floats)
    return int(total / 8)

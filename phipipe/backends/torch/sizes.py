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
    shapes = linears.shapes(checkpoint)
    if not shapes:  # of a layout that is not known
        table = checkpoint.vocab_size * checkpoint.hidden_size
        return (bits + 1) * checkpoint.parameters // 8 + 4 * table
    usual = Width.model_validate({"bits": bits, "group_size": options.group_size})
    total = 8.0 * checkpoint.weight_bytes
    for name, (rows, columns) in shapes.items():
        width = mapped.get(name, usual if linears.layer_of(name) is not None else None)
        if width is not None:
            stored = weight_bits(name, width, columns, options, checkpoint, learned)
            total += rows * columns * (stored - _float_bits(checkpoint))
    return int(total / 8)


def weight_bits(
    name: str, stored: Stored, columns: int, options: Options, checkpoint: Checkpoint, learned: bool
) -> float:
    """Bits of a weight with its share of scale and zero point."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    is_table = name == linears.EMBEDDING
    if stored.bits == FLOAT_BITS or (is_table and not learned):
        return _float_bits(checkpoint)
    if is_table:  # code times scale has 10 or 15 bits
        return 16 if stored.bits == 4 else 32
    grouped = Width(bits=stored.bits, group_size=stored.group_size or options.group_size)
    return STORES.bits_per_weight(grouped, columns)


def _float_bits(checkpoint: Checkpoint) -> float:
    """As the source has them."""
    return 8 * checkpoint.weight_bytes / max(1, checkpoint.parameters)

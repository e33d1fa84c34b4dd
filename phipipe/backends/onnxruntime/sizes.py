"""How large a quantized graph will be: light, for plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint


def quantized_bytes(
    bits: int,
    options: Options,
    checkpoint: Checkpoint,
    width: int,
    mapped: Mapping[str, Stored],
) -> int:
    """Estimate: linears at their bits, a scale of ``width`` bytes per block, a float embedding
    unless it is shared; the matrices in ``mapped`` (``schemes.widths_of``) as it says."""
    usual = weight_bits(Width.model_validate({"bits": bits}), options, width)
    loose = 4 if options.embeddings == "quantized" else 8 * width
    before = {linears.EMBEDDING: usual if checkpoint.tied else loose}
    embedding = checkpoint.vocab_size * checkpoint.hidden_size
    total = (checkpoint.parameters - embedding) * usual + embedding * before[linears.EMBEDDING]
    for name, (rows, columns) in linears.shapes(checkpoint).items():
        asked = mapped.get(name) or mapped.get(linears.joined(name) or "")
        if checkpoint.tied and name == linears.EMBEDDING:
            asked = mapped.get(linears.HEAD)
        if asked:
            more = weight_bits(asked, options, width) - before.get(name, usual)
            total += rows * columns * more
    return int(total / 8)


def weight_bits(stored: Stored, options: Options, width: int) -> float:
    """Bits of a weight with its share of scale and zero point; floats and scales have ``width``
    bytes."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    if stored.bits == FLOAT_BITS:
        return 8 * width
    group_bits = 8 * width + (0 if options.symmetric else stored.bits)
    return stored.bits + group_bits / (stored.group_size or options.block_size)

"""How large a quantized graph will be: light, for plans."""

from __future__ import annotations

from collections.abc import Container, Mapping

from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.onnxruntime.schemes import matrix_of, raised_nodes
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.models import linears
from phipipe.models.checkpoint import Checkpoint


def quantized_bytes(
    bits: int,
    options: Options,
    checkpoint: Checkpoint,
    width: int,
    mapped: Mapping[str, Stored],
) -> int:
    """Estimate: linears at their bits, a scale of ``width`` bytes per block, a float embedding
    unless it is shared; ``mapped`` are the matrices that the map names."""
    embedding = checkpoint.vocab_size * checkpoint.hidden_size
    in_linears = checkpoint.parameters - (0 if checkpoint.tied else embedding)
    raised = 0
    if bits == 4 and options.mixed != "none":
        raised += embedding
    if bits == 4 and options.mixed in ("down", "layers"):
        chosen = sum(
            "/mlp/down_proj/" in name for name in raised_nodes(options.mixed, checkpoint.layers)
        )
        joined = (checkpoint.heads + 2 * checkpoint.kv_heads) * checkpoint.head_size
        inner = checkpoint.intermediate_size + (joined if options.mixed == "layers" else 0)
        raised += chosen * checkpoint.hidden_size * inner
    shared = 8 * width + (0 if options.symmetric else bits)
    stored = (
        bits * in_linears + (8 - bits) * raised + shared * in_linears // options.block_size
    ) // 8
    loose = (
        0 if checkpoint.tied else embedding * (width if options.embeddings != "quantized" else 0.5)
    )
    more = _more_bits(bits, options, checkpoint, width, mapped) if mapped else 0
    return stored + int(loose) + int(more / 8)


def _more_bits(
    bits: int, options: Options, checkpoint: Checkpoint, width: int, mapped: Mapping[str, Stored]
) -> float:
    """By how many bits the map makes its matrices larger than the options alone."""
    nodes = raised_nodes(options.mixed, checkpoint.layers) if bits == 4 else ()
    raised = {matrix_of(node) or node for node in nodes}
    tied = {linears.EMBEDDING: linears.HEAD} if checkpoint.tied else {}
    more = 0.0
    for name, (rows, columns) in linears.shapes(checkpoint).items():
        asked = mapped.get(name)
        if not isinstance(asked, Width):
            continue
        wide = bits == 8 or _is_raised(tied.get(name, name), raised)
        usual = Width(bits=8 if wide else 4, group_size=options.block_size)
        before = weight_bits(usual, options, width)
        if name == linears.EMBEDDING and not checkpoint.tied:
            before = 4.0 if options.embeddings == "quantized" else 8.0 * width
        more += rows * columns * (weight_bits(asked, options, width) - before)
    return more


def weight_bits(stored: Stored, options: Options, width: int) -> float:
    """Bits of a weight with its share of scale and zero point; floats and scales have ``width``
    bytes."""
    assert isinstance(stored, Width)  # STORES has no types of its own
    if stored.bits == FLOAT_BITS:
        return 8 * width
    group_bits = 8 * width + (0 if options.symmetric else stored.bits)
    return stored.bits + group_bits / (stored.group_size or options.block_size)


def _is_raised(name: str, raised: Container[str]) -> bool:
    return name in raised or (linears.joined(name) or name) in raised

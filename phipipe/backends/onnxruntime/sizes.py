"""How large a quantized graph will be: light, for plans."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from phipipe.backends.onnxruntime.options import STORES, Options
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
    stores = replace(STORES, group_bits=8 * width)
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
        before = stores.bits_per_weight(usual, columns)
        if name == linears.EMBEDDING and not checkpoint.tied:
            before = 4.0 if options.embeddings == "quantized" else 8.0 * width
        floats = asked.bits == FLOAT_BITS
        after = 8.0 * width if floats else stores.bits_per_weight(asked, columns)
        more += rows * columns * (after - before)
    return more


def _is_raised(name: str, raised: Container[str]) -> bool:
    return name in raised or (linears.joined(name) or name) in raised

"""Learned weights in a rounded graph: codes and scales of the lattice as they are, and proof of it.

``MatMulNBits`` without zero points subtracts 8 at 4 bits and 128 at 8, as the lattice does, and
packs codes as the lattice does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from onnx import helper

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice
from phipipe.algorithms.olive_packed import Packed
from phipipe.backends.onnxruntime.graph import load
from phipipe.backends.onnxruntime.layout import LOOKUP
from phipipe.backends.onnxruntime.links import Weights
from phipipe.backends.onnxruntime.schemes import Scheme, matrix_of
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.progress import report

Rounded = dict[str, Callable[[], Packed]]

_PART = 2**22  # weights that are compared at a time


def codes_of(stored: Lattice, schemes: Mapping[str, Scheme], sizes: Mapping[str, int]) -> Rounded:
    """Node → what gives its integers and scales, for the nodes that ``schemes`` names; ``sizes``
    are their rows.

    Raises:
        StepFailed: the learned weights are of another shape or width.
    """
    return {node: partial(_packed, stored, node, sizes[node], one) for node, one in schemes.items()}


def _stored(stored: Lattice, node: str, rows: int) -> lattice.Packed:
    name = linears.EMBEDDING if node == LOOKUP else matrix_of(node) or node
    if name == linears.HEAD and name not in stored:  # tied
        name = linears.EMBEDDING
    return stored.packed_of(name, rows)


def _packed(stored: Lattice, node: str, rows: int, scheme: Scheme) -> Packed:
    found = _stored(stored, node, rows)
    if (found.bits, found.group_size) != (scheme.bits, scheme.block_size):
        raise StepFailed(
            f"the learned weights of `{node}` have {found.bits} bits in groups of "
            f"{found.group_size}, and not {scheme.bits} in groups of {scheme.block_size}"
        )
    return Packed(
        bits=found.bits,
        group_size=found.group_size,
        weight=found.codes,
        scales=found.scales.astype(np.float32),
        zeros=None,
    )


def check(folder: Path, stored: Lattice, sizes: Mapping[str, int]) -> None:
    """The graph in ``folder``, read from disk and decoded, holds exactly the learned weights for
    the nodes in ``sizes`` (their rows).

    Raises:
        StepFailed: names a node whose weight differs.
    """
    model, weights = load(folder), Weights(folder)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for done, (name, rows) in enumerate(sizes.items()):
        report(done, len(sizes), "weights compared")
        expected = _stored(stored, name, rows)
        node = nodes[f"{name}_Q{expected.bits}"]
        codes, scales = (node.input[0], node.input[2]) if name == LOOKUP else node.input[1:3]
        kind = helper.tensor_dtype_to_np_dtype(tensors[scales].data_type)
        found = Packed(
            bits=expected.bits,
            group_size=expected.group_size,
            weight=weights.raw(tensors[codes]).reshape(rows, -1),
            scales=weights.raw(tensors[scales]).view(kind).astype(np.float32).reshape(rows, -1),
            zeros=None,
        )
        step = max(1, _PART // expected.shape[1])
        for start in range(0, rows, step):
            part = expected.part(start, start + step).matrix().dense()
            if not np.array_equal(found.rows(start, start + step).dense(), part):
                raise StepFailed(f"`{name}` does not hold the learned weights as they are")

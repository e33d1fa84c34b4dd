"""Learned codes in MLX's affine format: weight = code′ × scale + bias, where code′ is the code
without its sign (code + 8 at 4 bits, code + 128 at 8) and bias = −8 × scale, or −128 × scale.

A scale of the lattice has 7 significant bits, so that scale and bias are exact in float16 and in
bfloat16, whichever the model has. MLX lays eight codes of 4 bits, or four of 8, into a 32-bit word,
the first in the lowest bits: on little-endian machines, the bytes of ``Matrix.packed``.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx import nn

from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.errors import StepFailed
from phipipe.models import linears


def matrix_of(path: str) -> str | None:
    """The name in ``models.linears`` of the matrix that the layer ``path`` holds."""
    return linears.linear_of(f"{path}.weight")


def put(model: nn.Module, learned: Lattice) -> None:
    """Have the quantized layers of ``model`` hold what was learned. What mlx-lm would round was
    not computed yet, and never is.

    Raises:
        StepFailed: a layer holds another matrix than was learned, or its 16 bits no such bias.
    """
    for path, layer in model.named_modules():
        name = matrix_of(path)
        if "scales" in layer and name:
            matrix = learned.rows_of(name, layer.weight.shape[0])
            layer.weight, layer.scales, layer.biases = affine(matrix, layer.scales.dtype)
            if not mx.all(mx.isfinite(layer.biases)).item():
                raise StepFailed(f"`{name}` has scales whose bias is too large for 16 bits")


def affine(matrix: Matrix, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    """Words uint32 [rows, columns × bits / 32], scales and biases ``dtype`` [rows, groups]."""
    words = np.ascontiguousarray(matrix.packed()).view("<u4")
    scales = mx.array(matrix.scales.astype(np.float32))
    biases = scales * -(1 << (matrix.bits - 1))
    return mx.array(words), scales.astype(dtype), biases.astype(dtype)


def check(tensors: Mapping[str, mx.array], learned: Lattice) -> None:
    """The files hold the codes and scales of ``learned``, and nothing was rounded again.

    Raises:
        StepFailed: names the first matrix that they hold otherwise, or not at all.
    """
    held = {
        name: path
        for path in (key.removesuffix(".scales") for key in tensors if key.endswith(".scales"))
        if (name := matrix_of(path))
    }
    if lost := learned.names - held.keys():
        raise StepFailed(f"the files do not hold the learned `{min(lost)}`")
    for name in sorted(learned.names):
        matrix, path = learned[name], held[name]
        words, scales, biases = (tensors[f"{path}.{p}"] for p in ("weight", "scales", "biases"))
        wide = np.array(scales.astype(mx.float32)), np.array(biases.astype(mx.float32))
        expected = matrix.scales.astype(np.float32)
        if not (
            np.array_equal(np.array(words).view(np.uint8), matrix.packed())
            and np.array_equal(wide[0], expected)
            and np.array_equal(wide[1], expected * -(1 << (matrix.bits - 1)))
        ):
            raise StepFailed(f"`{name}` is not stored as it was learned")

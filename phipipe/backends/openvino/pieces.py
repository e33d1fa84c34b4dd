"""NNCF's own rounding, some rows at a time.

It computes with matrices of 32 bits on the way. Those of a few rows stay in the processor's cache:
3.8 billion weights take 1.3 GiB and 44 s instead of 1.7 GiB and 46 s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import openvino
from nncf.openvino.optimized_functions.models import OV_MODEL_CACHE
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor, TensorBackend

Bytes = npt.NDArray[np.uint8]
_NUMPY = (openvino.Type.f16, openvino.Type.f32)  # whose values numpy can slice
PIECE = 2**20  # weights; 2 MiB in 16 bits, and some times 4 MiB on the way


class Compress(Protocol):
    """NNCF's function: a ``weight``, the axes along which it has groups, and what was chosen."""

    def __call__(
        self,
        weight: Tensor,
        reduction_axes: Sequence[int],
        config: WeightCompressionConfig,
        precomputed_compressed_weight: CompressedWeight | None = None,
    ) -> CompressedWeight: ...


def in_pieces(compress: Compress) -> Compress:
    """``compress`` with the same result, for integers whose rows are rounded by themselves."""

    def compressed(
        weight: Tensor,
        reduction_axes: Sequence[int],
        config: WeightCompressionConfig,
        precomputed_compressed_weight: CompressedWeight | None = None,
    ) -> CompressedWeight:
        by_row = (
            len(weight.shape) == 2 and tuple(reduction_axes) == (1,) and weight.shape[1] % 2 == 0
        )
        plain = weight.backend == TensorBackend.ov and weight.data.get_element_type() in _NUMPY
        if precomputed_compressed_weight or not (config.is_integer and by_row and plain):
            return compress(weight, reduction_axes, config, precomputed_compressed_weight)
        values, parts = weight.data.data, list[CompressedWeight]()
        with _compiled_once():
            for start, end in pairwise(_bounds(*values.shape)):
                piece = Tensor(openvino.Tensor(values[start:end], shared_memory=True))
                parts.append(_kept(compress(piece, reduction_axes, config)))
        names = ("tensor", "scale", "zero_point")
        found = {name: _joined([getattr(part, name) for part in parts]) for name in names}
        return CompressedWeight(**found)

    return compressed


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """While this lasts, NNCF compiles a graph for all pieces, and none that others have results
    of: the next results take their memory."""
    was = OV_MODEL_CACHE.enabled()
    OV_MODEL_CACHE.clear()
    OV_MODEL_CACHE.enable()
    try:
        yield
    finally:
        OV_MODEL_CACHE.clear()
        if not was:
            OV_MODEL_CACHE.disable()


def _bounds(rows: int, columns: int) -> Sequence[int]:
    """Where pieces of like size begin and end. Each has rows in pairs, so values of 4 bits fill its
    bytes; none is as small as those that NNCF rounds with NumPy instead."""
    count = max(1, rows * columns // PIECE)
    return sorted({*(2 * (i * rows // (2 * count)) for i in range(count)), rows})


def _kept(part: CompressedWeight) -> CompressedWeight:
    """``part`` in memory of its own: NNCF takes its results' memory again."""
    own = [_copied(one) for one in (part.tensor, part.scale, part.zero_point)]
    return CompressedWeight(own[0], own[1], zero_point=own[2])


def _copied(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    data = tensor.data
    if tensor.backend != TensorBackend.ov:
        return Tensor(np.array(data))
    made = openvino.Tensor(data.get_element_type(), data.shape)
    _bytes(made)[:] = _bytes(data)
    return Tensor(made)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of the rows of all ``parts``."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    first = there[0]
    if first.backend != TensorBackend.ov:
        return Tensor(np.concatenate([part.data for part in there]))
    rows = sum(part.shape[0] for part in there)
    made = openvino.Tensor(first.data.get_element_type(), [rows, *first.shape[1:]])
    np.concatenate([_bytes(part.data) for part in there], out=_bytes(made))
    return Tensor(made)


def _bytes(tensor: openvino.Tensor) -> Bytes:
    """Of all values, in order; of 4 bits, two values in a byte."""
    values: Bytes = tensor.data.reshape(-1).view(np.uint8)
    return values

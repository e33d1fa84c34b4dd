"""Codes and scales of the lattice as llama.cpp's blocks, and the order of its rows.

A block is 32 weights of a row (ggml-common.h): a float16 scale, and either 32 int8, or 16 bytes
with the first 16 weights in their low halves and the others in the high ones, each plus 8. Larger
groups of the lattice are several blocks with one scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phipipe.algorithms.lattice import Matrix

BLOCK = 32

Order = npt.NDArray[np.intp]


def permuted(rows: int, heads: int) -> Order:
    """For each row that llama.cpp's converter writes, the one that it takes: a head's second half
    goes between the rows of its first."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def blocks(matrix: Matrix) -> npt.NDArray[np.uint8]:
    """``matrix`` in blocks of Q4_0 or Q8_0, uint8 [rows, bytes of a row]."""
    rows = len(matrix.codes)
    codes = matrix.codes.reshape(-1, BLOCK)
    if matrix.bits == 4:
        lifted = (codes + 8).astype(np.uint8)
        codes_raw = lifted[:, :16] | lifted[:, 16:] << 4
    else:
        codes_raw = codes.view(np.uint8)
    scales = np.repeat(matrix.scales, matrix.group_size // BLOCK, axis=1).astype("<f2")
    scales_raw = np.ascontiguousarray(scales).view(np.uint8).reshape(-1, 2)
    return np.concatenate([scales_raw, codes_raw], axis=1).reshape(rows, -1)

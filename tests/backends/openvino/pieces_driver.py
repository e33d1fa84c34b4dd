"""Runs in OpenVINO's toolchain: ``python pieces_driver.py ROOT``.

Rounds made-up matrices whole and in pieces; ``facts.json`` names the cases that differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.tensor import Tensor
from testing.drive import answer

from phipipe.backends.openvino import pieces

MODES = ("INT4_SYM", "INT4_ASYM", "INT8_SYM", "INT8_ASYM")
SHAPES = ((1001, 64), (333, 96), (640, 160), (9, 8192), (2, 32), (1290, 64))


def content(tensor: Tensor | None) -> bytes:
    """Of all values, in order, and their shape; half a byte behind the last is left out."""
    if tensor is None:
        return b""
    packed = isinstance(tensor.data, openvino.Tensor)
    raw = bytearray(np.ascontiguousarray(tensor.data.data if packed else tensor.data).tobytes())
    if packed and tensor.size % 2:
        raw[-1] &= 15
    return repr(tuple(tensor.shape)).encode() + raw


def differing() -> list[str]:
    pieces.PIECE = 13_000
    random, found = np.random.default_rng(5), list[str]()
    whole, compress = openvino_backend.compress_weight, pieces.in_pieces
    for mode in MODES:
        for rows, columns in SHAPES:
            for group in (-1, 32) if "4" in mode else (-1,):
                for kind in (np.float16, np.float32):
                    config = WeightCompressionConfig(
                        mode=nncf.CompressWeightsMode[mode], group_size=group
                    )
                    values = random.standard_normal((rows, columns)).astype(kind)
                    values[0] = 0
                    weight = Tensor(openvino.Tensor(values))
                    one = pieces._kept(whole(weight, (1,), config))
                    other = compress(whole)(weight, (1,), config)
                    for name in ("tensor", "scale", "zero_point"):
                        if content(getattr(one, name)) != content(getattr(other, name)):
                            found.append(f"{mode} {rows} x {columns}, {group}, {kind}: {name}")
    return found


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", {"differing": differing})

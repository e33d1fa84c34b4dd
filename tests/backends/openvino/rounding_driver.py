"""Runs in OpenVINO's toolchain: ``python rounding_driver.py ROOT``.

Rounds made-up matrices with NNCF and with our operations; ``facts.json`` names the cases that
differ, and how many were compared.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nncf
import numpy as np
import numpy.typing as npt
import openvino
from nncf.quantization.algorithms.weight_compression import openvino_backend
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor
from testing.drive import answer

from phipipe.backends.openvino import rounding

MODES = ("INT4_SYM", "INT4_ASYM", "INT8_SYM", "INT8_ASYM")
SHAPES = ((1001, 64), (333, 96), (640, 160), (9, 8192), (1, 16384), (2, 32), (1290, 64), (700, 15))
KINDS = ("f16", "f32", "bf16")
Values = npt.NDArray[np.float32]


def matrix(random: np.random.Generator, shape: tuple[int, int]) -> Values:
    """Numbers of some magnitude; rows of zeros, of one sign, of numbers that all lie between two
    codes, of one number, of numbers too small for a scale."""
    values = random.standard_normal(shape) * 10 ** random.uniform(-3, 2)
    rows = [np.zeros(shape[1]), abs(values[-1]), -abs(values[-1])]
    rows += [random.integers(-16, 16, shape[1]) / 2, np.full(shape[1], values[-1, 0])]
    rows += [values[-1] * 1e-9]
    for row, made in zip(values, rows, strict=False):
        row[:] = made
    return values.astype(np.float32)


def stored(values: Values, kind: str) -> Tensor:
    """``values`` as OpenVINO keeps them; in bf16 the lower half of their bits is cut off."""
    if kind == "bf16":
        halves = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
        return Tensor(openvino.Tensor(halves.view(np.float16), values.shape, openvino.Type.bf16))
    return Tensor(openvino.Tensor(values.astype({"f16": np.float16, "f32": np.float32}[kind])))


def content(found: CompressedWeight) -> Sequence[tuple[Sequence[int], bytes]]:
    """Shape and values of all that is stored for a weight."""
    parts = [part for part in (found.tensor, found.scale, found.zero_point) if part is not None]
    arrays = [np.asarray(part.as_numpy_tensor().data, np.float32) for part in parts]
    return [(array.shape, array.tobytes()) for array in arrays]


def cases() -> Iterator[tuple[str, Tensor, WeightCompressionConfig]]:
    random = np.random.default_rng(5)
    for mode, shape, kind, size in itertools.product(MODES, SHAPES, KINDS, (-1, 32)):
        if size != -1 and ("8" in mode or shape[1] % size):
            continue
        config = WeightCompressionConfig(mode=nncf.CompressWeightsMode[mode], group_size=size)
        weight = stored(matrix(random, shape), kind)
        yield f"{mode} {shape[0]} x {shape[1]}, {size}, {kind}", weight, config


def ours() -> Iterator[tuple[str, Tensor, WeightCompressionConfig]]:
    """The cases that are not left to NNCF."""
    return (case for case in cases() if rounding._is_plain(case[1], (1,), case[2]))


def differing() -> list[str]:
    rounding.PIECE = 13_000
    compress = rounding.in_pieces(openvino_backend.compress_weight)
    # All of ours first: they leave the weights alone, and outlive what comes after.
    held = [
        (name, weight, config, compress(weight, (1,), config)) for name, weight, config in ours()
    ]
    found = []
    for name, weight, config, mine in held:
        halves = weight.data.get_element_type() == openvino.Type.bf16
        given = Tensor(openvino.Tensor(numbers(weight).astype(np.float16))) if halves else weight
        if content(openvino_backend.compress_weight(given, (1,), config)) != content(mine):
            found.append(name)
    return found


def numbers(weight: Tensor) -> Values:
    """The values of a bf16 ``weight``."""
    raw = weight.data.data.view(np.uint16).astype(np.uint32) << 16
    return raw.view(np.float32)


def compared() -> int:
    return len(list(ours()))


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", {"differing": differing, "compared": compared})

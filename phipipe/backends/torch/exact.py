"""Learned weights in auto-round's format: codes and scales of the lattice as they are.

The embedding, and a head tied to it, are no linear layers: they are stored in floats that hold
code × scale exactly. Nothing is rounded here, and auto-round does not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.backends.torch import packing
from phipipe.backends.torch.packing import Packing
from phipipe.errors import StepFailed
from phipipe.models import linears, tensors
from phipipe.steps import Json, Params

# auto-round's name for GPTQ's layout, zero points stored less one.
LAYOUT = "auto_round:auto_gptq"


def store(source: Path, weights: Path, out: Path, params: Params, patch: dict[str, Json]) -> None:
    """Copy ``source`` to ``out`` with what ``weights``, a folder of ``algorithms.lattice``, holds
    in its matrices' place. ``patch`` replaces keys of the config.

    Raises:
        StepFailed: a matrix has another shape or width than the lattice's.
    """
    stored = Lattice(weights)

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        matrix = learned(stored, name, params)
        if matrix is None:
            return {name: tensor}
        if matrix.codes.shape != tensor.shape:
            raise StepFailed(f"the learned weights of `{name}` have the shape of another model")
        how = packing.of(name, tensor.shape, params)
        return parts(name, matrix, how) if how else {name: floats(matrix)}

    settings = _settings(packing.shapes(source), params)
    # Not the source's dtype: transformers would round floats of the lattice to it.
    dtypes: dict[str, Json] = dict.fromkeys(packing.dtype_keys(source), "float32")
    tensors.rewrite(source, out, change, {**dtypes, "quantization_config": settings, **patch})


def learned(stored: Lattice, tensor: str, params: Params) -> Matrix | None:
    """The matrix of the lattice that belongs in the place of the checkpoint's ``tensor``; None
    where that stays as it is."""
    name = linears.linear_of(tensor)
    if name == linears.HEAD and name not in params["widths"]:  # a copy of the embedding
        name = linears.EMBEDDING
    return stored[name] if name and name in stored else None


def floats(matrix: Matrix) -> torch.Tensor:
    """The weight in float16 where that is exact, else in float32."""
    whole = torch.from_numpy(matrix.dense())
    half = whole.half()
    return half if half.float().equal(whole) else whole


def parts(name: str, matrix: Matrix, how: Packing) -> dict[str, torch.Tensor]:
    """The tensors that hold ``matrix`` in the place of the checkpoint's weight ``name``.

    Raises:
        StepFailed: the matrix is not as wide as ``how`` says.
    """
    if (matrix.bits, matrix.group_size) != (how.bits, how.size(matrix.codes.shape[1])):
        raise StepFailed(
            f"the learned weights of `{name}` have {matrix.bits} bits in groups of "
            f"{matrix.group_size}, and not {how.bits} in groups of {how.group_size}"
        )
    rows, groups = matrix.scales.shape
    words = matrix.packed().view("<i4").T
    middle = (1 << (matrix.bits - 1)) - 1  # the zero point, less one
    zero = int.from_bytes(bytes([middle if matrix.bits == 8 else middle * 17]) * 4, "little")
    stem = name.removesuffix("weight")
    return {
        f"{stem}qweight": torch.from_numpy(np.ascontiguousarray(words, np.int32)),
        f"{stem}qzeros": torch.full((groups, rows * matrix.bits // 32), zero, dtype=torch.int32),
        f"{stem}scales": torch.from_numpy(np.ascontiguousarray(matrix.scales.T)),
    }


def _settings(shapes: Mapping[str, Sequence[int]], params: Params) -> dict[str, Json]:
    """auto-round's part of the config, as it writes it itself."""
    usual: dict[str, Json] = {"sym": True, "data_type": "int"}
    extra = {
        module: one if module.startswith("model.") else {**one, **usual}
        for module, one in packing.exceptions(shapes, params).items()
    }
    return {
        "quant_method": "auto-round",
        "packing_format": LAYOUT,
        "block_name_to_quantize": "model.layers",
        "bits": params["bits"],
        "group_size": params["group_size"],
        **usual,
        **({"extra_config": extra} if extra else {}),
    }

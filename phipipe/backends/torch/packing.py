"""How each matrix of a checkpoint is stored in auto-round's format: as integers, or in floats.

GPTQ's layout: ``qweight`` int32 [columns · bits / 32, rows] holds code + 2^(bits − 1), the first of
a word in its lowest bits; ``scales`` float16 [groups, rows]; ``qzeros`` int32 [groups, rows · bits
/ 32] the zero points, where symmetric less one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from phipipe.backends import widths
from phipipe.backends.widths import FLOAT_BITS, Width
from phipipe.models import linears, tensor_places
from phipipe.models.tensors import LINEAR
from phipipe.steps import Json, Params


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Integers of so many ``bits``; ``group_size`` of them share a scale (-1: a row)."""

    bits: int
    group_size: int

    def size(self, columns: int) -> int:
        """Weights that share a scale, in rows of ``columns``."""
        return columns if self.group_size == -1 else self.group_size


def of(tensor: str, shape: Sequence[int], params: Params) -> Packing | None:
    """How the step's ``params`` have the checkpoint's ``tensor`` stored; None: in floats."""
    if len(shape) != 2:
        return None
    name = linears.linear_of(tensor)
    stored = widths.from_params(params.get("widths", {})).get(name or "")
    if isinstance(stored, Width):
        whole = name != linears.EMBEDDING and shape[0] % 32 == 0
        if stored.bits == FLOAT_BITS or not whole:
            return None
        return Packing(
            bits=stored.bits,
            group_size=stored.group_size or params["group_size"],
        )
    if not LINEAR.fullmatch(tensor):
        return None
    return Packing(bits=params["bits"], group_size=params["group_size"])


def shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Tensor → shape, of the checkpoint ``source``."""
    return {name: place.shape for name, place in tensor_places.places(source).items()}


def dtype_keys(source: Path) -> list[str]:
    """The keys of ``config.json`` that tell readers the dtype of floats."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    return ["torch_dtype", *(["dtype"] if "dtype" in config else [])]


def exceptions(tensors: Mapping[str, Sequence[int]], params: Params) -> dict[str, dict[str, Json]]:
    """Module → what auto-round is to do with it that it does not do with all others, of a
    checkpoint with such ``tensors`` (name → shape)."""
    usual = Packing(bits=params["bits"], group_size=params["group_size"])
    found: dict[str, dict[str, Json]] = {}
    for tensor, shape in tensors.items():
        packing, in_layers = of(tensor, shape, params), bool(LINEAR.fullmatch(tensor))
        if len(shape) != 2 or packing == (usual if in_layers else None):
            continue
        module = tensor.removesuffix(".weight")
        if packing is None:
            found[module] = {"bits": FLOAT_BITS}
        else:
            found[module] = {"bits": packing.bits, "group_size": packing.group_size}
    return found


def dense(
    parts: Mapping[str, torch.Tensor], bits: int, less_one: bool, scales: torch.Tensor
) -> torch.Tensor:
    """The values float32 [inputs, outputs] that ``qweight`` and ``qzeros`` of ``parts`` stand for;
    ``less_one``: zero points are stored so; ``scales`` float32 [groups, outputs].

    Exact: 11 bits times integers of at most 9.
    """
    top, shifts = 2**bits - 1, torch.arange(0, 32, bits, dtype=torch.int32)
    zeros = (parts["qzeros"][:, :, None] >> shifts & top).reshape(scales.shape) + less_one
    words = parts["qweight"][:, None, :] >> shifts[None, :, None] & top
    grouped = words.reshape(len(zeros), -1, scales.shape[1])
    return (scales[:, None] * (grouped - zeros[:, None])).reshape(-1, scales.shape[1])

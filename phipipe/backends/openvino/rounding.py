"""NNCF's plain rounding to integers, some rows at a time: the same bits, sooner.

NNCF has OpenVINO compile a graph for each matrix, which writes values of 32 bits on the way. Rows
that stay in the processor's cache take a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import nncf
import openvino
import torch
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
from nncf.quantization.algorithms.weight_compression.constants import (
    MIN_INPUT_SIZE_FOR_OPTIMIZED_COMPRESSION as SMALL,
)
from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
from nncf.tensor import Tensor, TensorBackend

PIECE = 2**19  # weights; 2 MiB in 32 bits
EPSILON = torch.finfo(torch.float32).eps  # no scale is smaller
_Mode = nncf.CompressWeightsMode
_KINDS = {
    _Mode.INT4_SYM: openvino.Type.i4,
    _Mode.INT4_ASYM: openvino.Type.u4,
    _Mode.INT8_SYM: openvino.Type.i8,
    _Mode.INT8_ASYM: openvino.Type.u8,
}
_FLOATS = {
    openvino.Type.bf16: torch.bfloat16,
    openvino.Type.f16: torch.float16,
    openvino.Type.f32: torch.float32,
}


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
    """``compress`` with the same result: integers whose rows are rounded by themselves come from
    here, all others from NNCF. Weights in bf16 are rounded to fp16 before."""

    def compressed(
        weight: Tensor,
        reduction_axes: Sequence[int],
        config: WeightCompressionConfig,
        precomputed_compressed_weight: CompressedWeight | None = None,
    ) -> CompressedWeight:
        if not precomputed_compressed_weight and _is_plain(weight, reduction_axes, config):
            return _rounded(_values(weight.data), config)
        return compress(in_halves(weight), reduction_axes, config, precomputed_compressed_weight)

    return compressed


def in_halves(weight: Tensor) -> Tensor:
    """``weight`` with its bf16 as fp16, rounded as ``graph.to_fp16`` rounds them."""
    if weight.backend != TensorBackend.ov or weight.data.get_element_type() != openvino.Type.bf16:
        return weight
    halves = openvino.Tensor(openvino.Type.f16, weight.data.shape)
    into, values = (_values(tensor).view(-1).split(PIECE) for tensor in (halves, weight.data))
    for some, given in zip(into, values, strict=True):
        some.copy_(given.float())
    return Tensor(halves)


def _is_plain(weight: Tensor, axes: Sequence[int], config: WeightCompressionConfig) -> bool:
    """Whether ``_rounded`` does what NNCF does: small matrices it gives to NumPy, which rounds
    otherwise; values of 4 bits fill the bytes of each row."""
    columns = weight.shape[-1]
    return (
        config.mode in _KINDS
        and weight.backend == TensorBackend.ov
        and weight.data.get_element_type() in _FLOATS
        and weight.size >= SMALL
        and len(weight.shape) == 2
        and tuple(axes) == (1,)
        and columns % 2 == 0
        and columns % max(1, config.group_size) == 0
    )


def _values(tensor: openvino.Tensor) -> torch.Tensor:
    """The floats of ``tensor``, in its own memory."""
    kind = _FLOATS[tensor.get_element_type()]
    raw = torch.from_numpy(tensor.data.view("i2" if kind.itemsize == 2 else "i4"))
    return raw.view(kind).view(tuple(tensor.shape))


def _rounded(weight: torch.Tensor, config: WeightCompressionConfig) -> CompressedWeight:
    """Codes [rows, columns] or [rows, groups, size]; of each group a scale in fp32, and a zero
    point where the mode has them, [rows, 1] or [rows, groups, 1]."""
    shape = list(weight.shape)
    if config.group_size != -1:
        shape[1:] = [shape[1] // config.group_size, config.group_size]
    kind, bits, has_zeros = _KINDS[config.mode], config.num_bits, config.is_asym_mode
    lowest = 0 if has_zeros else -(2 ** (bits - 1))
    made = openvino.Tensor(kind, shape)
    codes = _raw(made).view(len(weight), -1)
    scales, zeros = list[torch.Tensor](), list[torch.Tensor]()
    rows = max(1, PIECE // weight.shape[1])
    for values, into in zip(weight.split(rows), codes.split(rows), strict=True):
        groups = values.to(torch.float32, copy=True).view(len(values), *shape[1:])
        if values.dtype == torch.bfloat16:
            groups = groups.half().float()
        scale, zero = (_asymmetric if has_zeros else _symmetric)(groups, bits)
        groups.div_(scale).add_(zero).round_().clamp_(lowest, lowest + 2**bits - 1)
        into.copy_(_packed(groups, bits).view(into.shape))
        scales.append(scale)
        zeros.append(zero)
    stored = CompressedWeight(Tensor(made), Tensor(torch.cat(scales).numpy()))
    if has_zeros:
        stored.zero_point = Tensor(openvino.Tensor(kind, [*shape[:-1], 1]))
        _raw(stored.zero_point.data).copy_(_packed(torch.cat(zeros), bits))
    return stored


def _symmetric(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales, whose signs give the lowest code to the value that is furthest from 0; zeros."""
    low, high = groups.amin(-1, keepdim=True).abs_(), groups.amax(-1, keepdim=True)
    scale = torch.where(low >= high, low, -high) / 2 ** (bits - 1)
    return torch.where(scale.abs() < EPSILON, EPSILON, scale), torch.zeros_like(scale)


def _asymmetric(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of ranges that hold 0."""
    top = 2**bits - 1
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    scale = (groups.amax(-1, keepdim=True).clamp_(min=0) - low) / top
    scale = torch.where(scale < EPSILON, EPSILON, scale)
    return scale, (-(low / scale).round_()).clamp_(0, top)


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The bytes of ``codes``: of 4 bits two in one, the first in its low half."""
    flat = codes.view(-1).to(torch.int16).to(torch.int8)  # 255 has no int8 of its own
    if bits == 8:
        return flat.view(torch.uint8)
    pairs = torch.nn.functional.pad(flat, (0, len(flat) % 2)).view(torch.int16)  # low byte first
    return ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).to(torch.uint8)


def _raw(tensor: openvino.Tensor) -> torch.Tensor:
    """The bytes of ``tensor``, in its own memory: it must live as long as they do."""
    return torch.from_numpy(tensor.data.reshape(-1).view("u1"))

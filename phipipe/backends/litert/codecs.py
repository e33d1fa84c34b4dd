"""What a ``.tflite`` holds of a weight: ai-edge-quantizer's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as uniform

from phipipe.backends.litert.options import GROUP
from phipipe.backends.litert.sizes import SMALLEST_SCALE
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Rounding to the nearest, symmetric, by the largest value of each group or row."""
    grouped = params["scheme"] == "dynamic"
    usual = params["group_size"] or (GROUP if grouped else -1)

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert isinstance(stored, Width)  # STORES has no types of its own
        if stored.bits == FLOAT_BITS:
            return weight.astype(np.float16).astype(np.float32)
        size = (stored.group_size or usual) if stored.bits == 4 else -1
        return _rounded(weight, stored.bits, size)

    return held


def _rounded(weight: Floats, bits: int, size: int) -> Floats:
    """Codes · scales as they are stored, float32 [rows, columns]."""
    rows, columns = weight.shape
    name = "CHANNELWISE" if size < 0 else f"BLOCKWISE_{size}"
    groups = weight.reshape(rows, -1, columns if size < 0 else size)
    zeros, scales = uniform.tensor_zp_scale_from_min_max(
        groups.min(-1), groups.max(-1), bits, True, qtyping.QuantGranularity(name)
    )
    if size > 0:
        scales = np.maximum(scales, np.float32(SMALLEST_SCALE))
    params = qtyping.UniformQuantParams(
        num_bits=bits,
        quantized_dimension=0 if size < 0 else 1,
        scale=scales,
        zero_point=zeros,
        block_size=max(size, 0),
    )
    codes = uniform.uniform_quantize(weight, params, is_blockwise_quant=size > 0)
    if size > 0:  # as the quantizer writes them, after it has rounded
        scales = scales.astype(ml_dtypes.bfloat16)
    wide = scales.astype(np.float32)[..., None]
    return np.asarray(codes.reshape(groups.shape) * wide, np.float32).reshape(weight.shape)

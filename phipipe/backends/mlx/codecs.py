"""What a folder holds of a weight: MLX's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from phipipe.backends.mlx.options import float_dtype
from phipipe.backends.mlx.sizes import usual_group
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """The affine mode, which a map has whatever ``params["mode"]`` is for all others. Weights,
    scales and biases have the 16 bits of the model; decoding is exact, as for scoring."""
    dtype = getattr(mx, params["dtype"] or float_dtype(params["source_dtype"]))

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert isinstance(stored, Width)  # STORES has no types of its own
        rows = mx.array(weight).astype(dtype)
        if stored.bits == FLOAT_BITS:
            return np.array(rows.astype(mx.float32))
        size = stored.group_size or usual_group(params["mode"], params["group_size"])
        how = {"group_size": size, "bits": stored.bits, "mode": "affine"}
        words, scales, biases = mx.quantize(rows, **how)
        wide = scales.astype(mx.float32), biases.astype(mx.float32)
        return np.array(mx.dequantize(words, *wide, **how))

    return held

"""What a graph holds of a weight: NNCF's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino
from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight
from nncf.tensor import Tensor

from phipipe.backends.openvino import rounding
from phipipe.backends.openvino.mapped import config_of
from phipipe.backends.openvino.sizes import size_of
from phipipe.backends.widths import Stored, Width
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Plain rounding, symmetric or not: in the place of AWQ, scale estimation and GPTQ, too, which
    learn from a text. Weights are read in 16 bits, as the graph has them, and so are scales."""
    kind = "SYM" if params["symmetric"] else "ASYM"
    compress = rounding.in_pieces(compress_weight)

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert isinstance(stored, Width)  # STORES has no types of its own
        rows = weight.astype(np.float16)
        config = config_of(stored.bits, size_of(stored, params["group_size"]), kind)
        if config is None:
            return rows.astype(np.float32)
        # an OpenVINO tensor, as NNCF has it of a graph's constant: arrays it rounds otherwise
        found = compress(Tensor(openvino.Tensor(rows)), (1,), config)
        codes = _array(found.tensor)
        if found.zero_point is not None:
            codes -= _array(found.zero_point)
        scales = _array(found.scale).astype(np.float16).astype(np.float32)
        return np.asarray(codes * scales, np.float32).reshape(weight.shape)

    return held


def _array(tensor: Tensor) -> Floats:
    """Its values; OpenVINO's tensors of 4 bits have two in a byte."""
    return np.array(tensor.as_numpy_tensor().data, np.float32)

"""What a graph holds of a weight: onnxruntime's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phipipe.backends.onnxruntime import links, rounding
from phipipe.backends.onnxruntime.links import Matrix
from phipipe.backends.onnxruntime.schemes import Scheme
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Products as ``params["algorithm"]`` rounds them, "default" in the place of "gptq"; scales are
    floats of the graph, as wide as the unit has them.

    An embedding that is not tied gets "default" in the file, whatever the others get; at 4 bits, by
    code that rounds halves to even.
    """
    is_wide = params["api"] == "cpu"

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert isinstance(stored, Width)  # STORES has no types of its own
        rows: links.Floats = weight if is_wide else weight.astype(np.float16)
        if stored.bits == FLOAT_BITS:
            return rows.astype(np.float32)
        raw = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        matrix = Matrix(raw, rows.shape, "F32" if is_wide else "F16", False, rows.dtype)
        return rounding.rounded_rows(matrix, "rows", _scheme(params, stored)).dense()

    return held


def _scheme(params: Params, stored: Width) -> Scheme:
    return Scheme(
        bits=stored.bits,
        block_size=stored.group_size or params["block_size"],
        symmetric=params["symmetric"],
        accuracy_level=0,
        algorithm=params["algorithm"],
    )

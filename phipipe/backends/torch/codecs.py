"""What a checkpoint holds of a weight: auto-round's own rounding, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from auto_round.data_type.utils import get_quant_func

from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Round to nearest, symmetric or not: in the place of "signround", too, which learns from a
    text. Scales are float16; what stays in floats is the checkpoint's own."""
    symmetric = params["symmetric"]

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert isinstance(stored, Width)  # STORES has no types of its own
        if stored.bits == FLOAT_BITS:
            return weight
        rounds, _ = get_quant_func("int", stored.bits, symmetric, disable_opt_rtn=True, iters=0)
        values, _, _ = rounds(
            torch.from_numpy(np.ascontiguousarray(weight)),
            bits=stored.bits,
            group_size=stored.group_size or params["group_size"],
            scale_dtype=torch.float16,
        )
        return np.asarray(values.numpy(), np.float32)

    return held

"""What the graphs hold of a weight: the rounding of ``fixed_point``, called on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phipipe.backends.qnn.fixed_point import rounded, scale_of
from phipipe.backends.qnn.sizes import bits_of
from phipipe.backends.widths import Stored
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Symmetric rounding with one scale for each row; ranges of activations are not in it."""

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        width, inputs = bits_of(stored), weight.T  # graphs hold [in, out]
        scale = scale_of(inputs, width)
        return np.ascontiguousarray((rounded(inputs, scale, width) * scale).T, np.float32)

    return held

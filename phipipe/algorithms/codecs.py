"""What every backend's files hold of a weight that is learned on the lattice, asked of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from phipipe.algorithms import rounding
from phipipe.algorithms.rounding import Grid
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.algorithms.lattice import Floats
    from phipipe.backends.widths import Stored

FLOAT_BITS = 16


def codec(params: Params) -> Callable[[Floats, Stored, Floats], Floats]:
    """A ``backends.base.Codec`` of weights that ``params["learn"]`` rounds in groups of
    ``params["group_size"]``, which are the recipe's `weights:`; with ``params["positive"]`` no
    scale is below 0.

    "search" stands in the place of "gptq" and "signround", too, which learn from more than the
    importance; where that is zero throughout, all inputs count alike. At 16 bits the values are the
    weight itself: the floats are those of the backend.
    """

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        assert not isinstance(stored, str)  # the lattice has no types
        if stored.bits == FLOAT_BITS:
            return weight
        size = stored.group_size or params["group_size"]
        grid = Grid(
            bits=stored.bits,
            group_size=weight.shape[1] if size < 0 else size,
            positive=params.get("positive", False),
        )
        rows = torch.from_numpy(np.array(weight, np.float32))
        if params["learn"] == "round":
            return rounding.plain(rows, grid).dense()
        drive = importance if importance.any() else np.ones_like(importance)
        return rounding.searched(rows, torch.from_numpy(np.array(drive)), grid).dense()

    return held

"""What a recipe asks to be learned of the weights, whichever backend stores them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from phipipe.recipe.strict import Sparse

Smooth = Literal["none", "awq"]


class Weights(Sparse):
    """What is learned of the weights before a backend stores them; the same for all backends."""

    smooth: Smooth = Field(
        "none",
        description="awq: inputs that are large on the calibration text get finer steps. Their "
        "scales go into the norms and linears before them, so the model computes the same, and "
        "every format can hold it. For int8 and int4.",
    )

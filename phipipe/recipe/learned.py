"""What the user asks of weights that are prepared once for every runtime: the recipe's
`weights:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from phipipe.recipe.complaints import At
from phipipe.recipe.strict import Model

Smooth = Literal["none", "awq"]
Learning = Literal["round", "search", "gptq", "signround"]
ITERATIONS = 200  # auto-round's own default
_NO_ROUNDS = "`iterations` are signround's: add `learn: signround`, or write `iterations: none`"
_NO_LEARNING = "`distil` trains learned weights: add `learn: gptq`, or write `distil: none`"


def groups_words(size: int) -> str:
    """Weights that share one scale, in words; -1 is a row."""
    return "a scale per row" if size == -1 else f"groups of {size}"


class Weights(Model):
    """How the original's weights are prepared before a backend stores them."""

    smooth: Smooth = Field(
        "none",
        description="awq: inputs that are large on the calibration text get finer steps. Their "
        "scales go into the norms and linears before them, so the model computes the same, and "
        "every format can hold it. For int8 and int4.",
    )
    learn: Learning | None = Field(
        None,
        description="Round here, once for every runtime, in place of the runtime's own rounding, "
        "which `none` brings back. Usual is gptq for int4 models of up to 10⁹ parameters where the "
        "recipe has neither `weights` nor `quantize`. "
        "round: to the nearest. search: scales and codes with the least error, weighted by how "
        "strongly the calibration text drives each input. gptq: matrix by matrix, each error made "
        "up for in the columns and layers that follow. signround: auto-round learns which way each "
        "weight goes, layer by layer; it holds the whole model in fp32 and takes minutes to hours "
        "on a CPU.",
    )
    group_size: Literal[-1, 32, 64, 128] = Field(
        32,
        description="Learned weights that share one scale; -1: a row, for runtimes and NPUs that "
        "store that.",
    )

    iterations: int | None = Field(
        None,
        ge=1,
        le=10_000,
        strict=True,
        description=f"signround: steps of learning for each layer; {ITERATIONS} if not set.",
    )

    distil: bool | None = Field(
        None,
        strict=True,
        description="true: after learning, train the scales until the predictions come as near as "
        "they can to the original's. The size stays. What follows on the calibration text's first "
        "tokens decides whether it helps.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Weights:
        if self.iterations is not None and self.learn != "signround":
            raise At("iterations", _NO_ROUNDS)
        if self.distil and self.learn is None:
            raise At("distil", _NO_LEARNING)
        return self

"""How int8 and int4 weights are rounded and stored: light, for plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from phipipe.backends.widths import Mapped, Stores
from phipipe.models import linears
from phipipe.recipe.learned import ITERATIONS

BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
# Embeddings are no linear layer, and auto-round's format knows no other.
# A group has a scale in fp16 and a zero point as wide as its integers.
_GROUPS = (32, 64, 128, -1)
STORES = Stores(
    groups={4: _GROUPS, 8: _GROUPS},
    group_bits=20,
    fixed=frozenset({linears.EMBEDDING}),
    learned=True,
)


class Options(Mapped):
    """How int8 and int4 weights are rounded."""

    algorithm: Literal["rtn", "signround"] = Field(
        default="rtn",
        description="rtn: round to nearest, without data. signround: learns the rounding and "
        "the ranges layer by layer "
        "from the calibration text (auto-round's own method); more accurate, same size, much "
        "slower.",
    )
    group_size: Literal[32, 64, 128, -1] = Field(
        default=128,
        description="Weights that share one scale; -1: a whole row. Smaller is more accurate "
        "and larger on disk.",
    )
    symmetric: bool = Field(
        default=True,
        strict=True,
        description="Rounding around zero. Off (int4 only): a zero point per group, for skewed "
        "weights.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        strict=True,
        description=f"signround: steps of learning for each layer; {ITERATIONS} if not set.",
    )

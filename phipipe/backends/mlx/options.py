"""mlx-lm's knobs, and what they come to where one is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from phipipe.backends.widths import Mapped
from phipipe.steps import Dtype

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe

# Mode → weights that share a scale, and bits: mlx-lm's own defaults.
GROUPS: Mapping[str, int] = {"affine": 64, "mxfp4": 32, "nvfp4": 16, "mxfp8": 32}
BITS: Mapping[str, int] = {"mxfp4": 4, "nvfp4": 4, "mxfp8": 8}


# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "mode": "affine is the usual choice. mxfp4 and nvfp4 are for comparisons with other hardware.",
    "bits": "6 is the step between 4 and 8. 3 and 2 are for experiments.",
    "group_size": "64 is the usual choice. 32 is closer and about 10 % larger.",
    "mixed": "mixed_4_6 first where a gate refuses 4 bits. mixed_3_4 and mixed_2_6 where memory "
    "is the limit.",
    "map": '`{"layers.*.mlp.down_proj": {bits: 6}}` where `mixed` widens too much or too little. '
    "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, or 16 for floats.",
    "dtype": "Leave it out. float16 can be faster on the first Apple chips.",
}


class Options(Mapped):
    """mlx-lm's own knobs."""

    mode: Literal["affine", "mxfp4", "nvfp4", "mxfp8"] = Field(
        default="affine",
        description="affine: scale and bias per group. mxfp4, nvfp4, mxfp8: small "
        "floating-point formats with a shared "
        "scale, of fixed width and group.",
    )
    bits: Literal[2, 3, 4, 5, 6, 8] | None = Field(
        default=None,
        description="Bits per weight, affine only. Without it 4 for int4 and 8 for int8.",
    )
    group_size: Literal[16, 32, 64, 128] | None = Field(
        default=None,
        description="Weights that share one scale: 32, 64 (default) or 128; the other modes fix "
        "it.",
    )
    mixed: Literal["none", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"] = Field(
        default="none",
        description="Two widths: the LM head, and attention inputs and down projections of "
        "every third and the outer "
        "layers get the higher one.",
    )
    dtype: Literal["float16", "bfloat16"] | None = Field(
        default=None,
        description="16-bit type of fp16 builds, and of scales. Without it the checkpoint's own.",
    )


def float_dtype(source: str) -> Dtype:
    """The 16-bit type of a build from a checkpoint whose floats are ``source``."""
    return "bfloat16" if source == "bfloat16" else "float16"


def bits_of(recipe: Recipe, options: Options) -> int:
    """Bits per weight, where neither the map nor a mixed scheme names the matrix."""
    return BITS.get(options.mode) or options.bits or (8 if recipe.precision == "int8" else 4)


def group_of(options: Options) -> int:
    """Weights that share one scale."""
    return options.group_size or GROUPS[options.mode]

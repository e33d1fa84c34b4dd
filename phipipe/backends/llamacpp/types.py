"""llama.cpp's types, of files and of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from phipipe.steps import Dtype


class Type(NamedTuple):
    """One of llama.cpp's file types: the tensor type it is named after, its usual size, and what it
    is for."""

    tensor: str
    # per weight, of a whole model of some billion weights (llama.cpp, tools/quantize/README.md)
    bits: float
    use: str
    needs_imatrix: bool = False

    def words(self) -> str:
        """The type in a line."""
        needs = " Needs `imatrix`." if self.needs_imatrix else ""
        return f"{self.bits:g} bits. {self.use}{needs}"


TYPES: Mapping[str, Type] = {
    "F32": Type("F32", 32, "Nothing is lost and nothing is saved. For comparisons."),
    "F16": Type(
        "F16",
        16,
        "Half of F32, next to no loss. For GPUs with room, and as the source of further rounding.",
    ),
    "BF16": Type(
        "BF16",
        16,
        "Half of F32 with F32's range. For checkpoints that are bfloat16 already; slow on "
        "CPUs without it.",
    ),
    "Q8_0": Type(
        "Q8_0",
        8.5,
        "The original in all but name, at half of F16. Take it where it fits.",
    ),
    "Q6_K": Type(
        "Q6_K",
        6.6,
        "Hard to tell from Q8_0, a fifth smaller. Take it where Q8_0 just does not fit.",
    ),
    "Q5_K_M": Type(
        "Q5_K",
        5.7,
        "A safe middle: clearly closer than 4 bits. Take it where a gate refuses Q4_K_M.",
    ),
    "Q5_K_S": Type(
        "Q5_K",
        5.6,
        "Q5_K_M without the wider layers: a little smaller, a little further off.",
    ),
    "Q5_1": Type(
        "Q5_1",
        6.0,
        "An old format with scale and minimum. Q5_K_M is closer and smaller; take it where "
        "blocks of 256 do not fit the model.",
    ),
    "Q5_0": Type(
        "Q5_0",
        5.5,
        "An old format with a scale alone. Take it where blocks of 256 do not fit the model.",
    ),
    "Q4_K_M": Type("Q4_K", 4.9, "The usual choice: sensitive layers are wider. Start here."),
    "Q4_K_S": Type(
        "Q4_K",
        4.7,
        "Q4_K_M with fewer wider layers. Take it where some MiB are missing.",
    ),
    "Q4_1": Type(
        "Q4_1",
        5.1,
        "An old format with scale and minimum. Q4_K_S is closer and smaller; take it where "
        "blocks of 256 do not fit the model.",
    ),
    "Q4_0": Type(
        "Q4_0",
        4.7,
        "An old format that Arm CPUs repack for their fast kernels. Take it, with `imatrix`, "
        "where a phone's speed counts.",
    ),
    "IQ4_NL": Type(
        "IQ4_NL",
        4.7,
        "Levels that are not evenly spaced, in blocks of 32: closer than Q4_0. Arm CPUs have "
        "fast kernels for it, too.",
    ),
    "IQ4_XS": Type(
        "IQ4_XS",
        4.5,
        "The same levels in blocks of 256: the smallest good 4-bit file. Slower on CPUs than "
        "Q4_K_S.",
    ),
    "Q3_K_L": Type(
        "Q3_K",
        4.3,
        "3 bits with many wider layers. IQ4_XS is hardly larger and closer.",
    ),
    "Q3_K_M": Type(
        "Q3_K",
        4.0,
        "The first type with a loss that readers notice. Take it with `imatrix`, where 4 bits "
        "do not fit.",
    ),
    "Q3_K_S": Type("Q3_K", 3.7, "3 bits without wider layers. IQ3_M is closer at that size."),
    "IQ3_M": Type(
        "IQ3_S",
        3.8,
        "The closest of the types with 3 bits. Slower on CPUs than Q3_K_M.",
    ),
    "IQ3_S": Type("IQ3_S", 3.7, "IQ3_M with fewer wider layers."),
    "IQ3_XS": Type(
        "IQ3_S",
        3.5,
        "A mixture of IQ3_S and IQ3_XXS. For a file that must be a little smaller than IQ3_S.",
        True,
    ),
    "IQ3_XXS": Type(
        "IQ3_XXS",
        3.3,
        "About 3 bits. A larger model at IQ3_XXS often beats a smaller one at 4 bits; a small "
        "model suffers.",
        True,
    ),
    "Q2_K": Type(
        "Q2_K",
        3.2,
        "The simplest of the smallest types, quick on CPUs. Expect a clear loss.",
    ),
    "Q2_K_S": Type("Q2_K", 3.0, "Q2_K without wider layers. IQ2_M is closer.", True),
    "IQ2_M": Type(
        "IQ2_S",
        3.0,
        "The closest of the types with 2 bits. For models of 14 billion weights and more.",
        True,
    ),
    "IQ2_S": Type("IQ2_XS", 2.8, "IQ2_M with fewer wider layers.", True),
    "IQ2_XS": Type("IQ2_XS", 2.6, "For large models that fit no other way. Check the gates.", True),
    "IQ2_XXS": Type("IQ2_XXS", 2.4, "About 2 bits. Only for very large models.", True),
    "IQ1_M": Type("IQ1_M", 2.2, "Below 2 bits. An experiment: small models write nonsense.", True),
    "IQ1_S": Type("IQ1_S", 2.0, "The smallest of all. An experiment.", True),
}
DEFAULTS: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
FLOATS: Mapping[str, str] = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
DTYPES: Mapping[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BLOCK_256 = frozenset(
    name for name in TYPES if "_K" in name or (name.startswith("IQ") and name != "IQ4_NL")
)
TypeName = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S",
    "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS",
    "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip
TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL",
    "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
]  # fmt: skip
# Bits for a weight of each tensor type (ggml-common.h): of a block's bytes.
BITS: Mapping[str, float] = {
    **{"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_1": 6},
    **{"Q5_0": 5.5, "Q4_K": 4.5, "Q4_1": 5, "Q4_0": 4.5, "IQ4_NL": 4.5, "IQ4_XS": 4.25},
    **{"Q3_K": 3.4375, "IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "Q2_K": 2.625, "IQ2_S": 2.5625},
    **{"IQ2_XS": 2.3125, "IQ2_XXS": 2.0625},
}
BLOCK_256_TENSORS = frozenset(TYPES[name].tensor for name in BLOCK_256)
WEIGHED = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"})  # tensor types that need `imatrix`
BY_BITS: Mapping[int, str] = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}  # with a scale alone, blocks of 32


def float_type(dtype: str) -> str:
    """The type of floats that holds a checkpoint's ``dtype``."""
    return {"float16": "F16", "bfloat16": "BF16"}.get(dtype, "F32")

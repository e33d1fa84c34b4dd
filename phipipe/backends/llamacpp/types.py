"""llama.cpp's types, of files and of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Type(NamedTuple):
    """One of llama.cpp's file types: the tensor type it is named after, and its usual size."""

    tensor: str
    # per weight, of a whole model of some billion weights (llama.cpp, tools/quantize/README.md)
    bits: float
    needs_imatrix: bool = False


TYPES: Mapping[str, Type] = {
    "F32": Type("F32", 32),
    "F16": Type("F16", 16),
    "BF16": Type("BF16", 16),
    "Q8_0": Type("Q8_0", 8.5),
    "Q6_K": Type("Q6_K", 6.6),
    "Q5_K_M": Type("Q5_K", 5.7),
    "Q5_K_S": Type("Q5_K", 5.6),
    "Q5_1": Type("Q5_1", 6.0),
    "Q5_0": Type("Q5_0", 5.5),
    "Q4_K_M": Type("Q4_K", 4.9),
    "Q4_K_S": Type("Q4_K", 4.7),
    "Q4_1": Type("Q4_1", 5.1),
    "Q4_0": Type("Q4_0", 4.7),
    "IQ4_NL": Type("IQ4_NL", 4.7),
    "IQ4_XS": Type("IQ4_XS", 4.5),
    "Q3_K_L": Type("Q3_K", 4.3),
    "Q3_K_M": Type("Q3_K", 4.0),
    "Q3_K_S": Type("Q3_K", 3.7),
    "IQ3_M": Type("IQ3_S", 3.8),
    "IQ3_S": Type("IQ3_S", 3.7),
    "IQ3_XS": Type("IQ3_S", 3.5, True),
    "IQ3_XXS": Type("IQ3_XXS", 3.3, True),
    "Q2_K": Type("Q2_K", 3.2),
    "Q2_K_S": Type("Q2_K", 3.0, True),
    "IQ2_M": Type("IQ2_S", 3.0, True),
    "IQ2_S": Type("IQ2_XS", 2.8, True),
    "IQ2_XS": Type("IQ2_XS", 2.6, True),
    "IQ2_XXS": Type("IQ2_XXS", 2.4, True),
    "IQ1_M": Type("IQ1_M", 2.2, True),
    "IQ1_S": Type("IQ1_S", 2.0, True),
}
DEFAULTS: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
FLOATS: Mapping[str, str] = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
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

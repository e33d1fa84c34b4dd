"""What a recipe may ask of llama.cpp's quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from phipipe.backends.llamacpp.types import (
    BITS,
    BLOCK_256_TENSORS,
    BY_BITS,
    DEFAULTS,
    TensorType,
    TypeName,
)
from phipipe.backends.widths import FLOAT_BITS, Mapped, Stored, Stores

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe

LEARNED = "Q4_0"  # the type of files with learned weights, by most of them
STORES = Stores(
    groups=dict.fromkeys(BY_BITS, (32,)),
    group_bits=16,
    types=BITS,
    blocks=dict.fromkeys(BLOCK_256_TENSORS, 256),
    learned=True,
    # Q5_1 and Q4_1 lose to their K-quants, and types below 3 bits take minutes for each look.
    tuned=("Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"),
    presets=frozenset({"output_type", "embedding_type", "tensors", "pure"}),
)
# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "type": "Start with Q4_K_M. Go up to Q5_K_M or Q6_K where a gate refuses it, down to IQ4_XS "
    "or Q3_K_M where memory does. Take Q4_0 where an Arm phone's speed counts.",
    "imatrix": "On for every type below 5 bits: the file has the same size and is closer. It "
    "costs one pass over the calibration text.",
    "output_type": "Leave it out: Q6_K stands there in most 4-bit files. Q8_0 helps a model with "
    "a large vocabulary by a few MiB.",
    "embedding_type": "Set it to save memory in a small model with a large vocabulary, whose "
    "embedding is a good share of the file.",
    "tensors": "For a last step: give the layers that hurt most a wider type, or shrink single "
    "ones.",
    "map": "Like `tensors`, by names that other runtimes share, and with bits in place of types "
    "where you like: 8 is Q8_0, 5 is Q5_0, 4 is Q4_0. `Q6_K` is often the best next step.",
    "pure": "Leave it off. On, the file is smaller and clearly further off; it helps to compare "
    "types.",
}


class Options(Mapped):
    """llama.cpp's own names."""

    type: TypeName | None = Field(
        default=None,
        description="The file type. Without it: Q4_K_M for int4 (Q4_0 where weights are learned), "
        "Q8_0 for int8, F16 for fp16. int4 stands for all types below 8 bits. Q4_0 and IQ4_NL are "
        "what Arm phones repack for their fast kernels.",
    )
    imatrix: bool = Field(
        default=False,
        strict=True,
        description="Weigh rounding errors by how strongly the calibration text drives each input "
        "(`calibrate.text`). Better below 5 bits; required by the smallest types.",
    )
    output_type: TensorType | None = Field(
        default=None, description="Another type for the output layer (LM head)."
    )
    embedding_type: TensorType | None = Field(
        default=None, description="Another type for the token embedding."
    )
    tensors: dict[str, TensorType] = Field(
        default={},
        description="Other types for single tensors: regular expressions over GGUF's names, "
        "such as `ffn_down: Q8_0`. "
        "The first that is found in a name wins.",
    )
    pure: bool = Field(
        default=False,
        strict=True,
        description="One type for all layers, where llama.cpp would mix in better ones.",
    )


def type_of(recipe: Recipe, options: Options) -> str:
    """The file type that a recipe asks for.

    It is no map: llama.cpp's own mixture gives each tensor a type when it quantizes, by the model's
    shape, by whether there is an importance matrix, and by blocks that rows are too short for.
    """
    learned = recipe.weights.learn is not None and recipe.precision == "int4"
    return options.type or (LEARNED if learned else DEFAULTS[recipe.precision])


def tensor_type(stored: Stored, own: str) -> str:
    """ggml's type for a matrix; ``own``: that of the unquantized model."""
    if isinstance(stored, str):
        return stored
    return own if stored.bits == FLOAT_BITS else BY_BITS[stored.bits]

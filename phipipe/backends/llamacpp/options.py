"""What a recipe may ask of llama.cpp's quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends.llamacpp.types import DEFAULTS, TensorType, TypeName

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe


class Options(BaseModel):
    """llama.cpp's own names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: TypeName | None = Field(
        default=None,
        description="The file type. Without it: Q4_K_M for int4, Q8_0 for int8, F16 for fp16. "
        "int4 stands for all "
        "types below 8 bits. Q4_0 and IQ4_NL are what Arm phones repack for their fast kernels.",
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
    """The file type that a recipe asks for."""
    return options.type or DEFAULTS[recipe.precision]

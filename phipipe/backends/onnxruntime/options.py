"""What a recipe can ask of ONNX Runtime's rounding: its `quantize:` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from phipipe.backends.widths import Mapped, Stores
from phipipe.steps import Json

_BLOCKS = (32, 16, 64, 128, 256)
# A scale of each block in the graph's own width, which is fp32 on CPUs.
STORES = Stores(
    groups={4: _BLOCKS, 8: _BLOCKS},
    group_bits=32,
    learned=True,
    presets=frozenset({"mixed", "exclude", "embeddings"}),
)

# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "block_size": "32 is the usual choice. 128 is smaller and further off. Some units insist on "
    "one value; `plan` says so.",
    "symmetric": "On is fast everywhere. Turn it off where int4 misses a gate by little.",
    "algorithm": "Start with default. k_quant costs only time and is often closer. gptq is worth "
    "its minutes where a gate still refuses.",
    "mixed": "Try layers first where a gate refuses int4: it brings most for its size. head is "
    "the cheapest.",
    "rotate": "For models with a few very large weights, where gates refuse all else. quarot "
    "needs no data.",
    "accuracy_level": "Leave it out. 1 shows whether the fast int8 arithmetic costs anything.",
    "exclude": "For single nodes that hurt much. They stay at fp32, so they are large and slow.",
    "map": "For what `mixed` does not offer: single matrices at 4 or 8 bits, in blocks of their "
    "own, or in the graph's floats at 16.",
    "embeddings": "quantized saves most in small models with large vocabularies.",
}


class Options(Mapped):
    """How the weights are rounded; all algorithms but gptq are data-free."""

    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32,
        description="Weights that share one scale. Smaller is more accurate and larger on disk.",
    )
    symmetric: bool = Field(
        default=True,
        strict=True,
        description="Rounding around zero, without zero points. Off: a zero point per block, "
        "for skewed weights.",
    )
    algorithm: Literal["default", "rtn", "k_quant", "gptq"] = Field(
        default="default",
        description="default: onnxruntime's kernels; symmetric scales take the largest weight's "
        "sign, so all levels "
        "are used. rtn: round to nearest, positive scales, one level lost. k_quant: searches "
        "scale and zero point "
        "of each block, slower, always asymmetric. gptq (int4 only): Olive rounds column by "
        "column and makes up for "
        "each error in the next ones, by what it learns from the calibration text.",
    )
    mixed: Literal["none", "head", "down", "layers"] = Field(
        default="none",
        description="What an int4 model keeps at 8 bits. head: the LM head. down: also the down "
        "projections of the "
        "first and last eighth of the layers, and of every third between. layers: and their "
        "attention inputs.",
    )
    rotate: Literal["quarot", "spinquant"] | None = Field(
        default=None,
        description="Olive turns the weights in their space before they are rounded, so that "
        "none stands out; the "
        "model computes the same. quarot: by fixed (Hadamard) rotations. spinquant: by "
        "rotations that are learned "
        "from the calibration text.",
    )
    accuracy_level: int | None = Field(
        default=None,
        ge=0,
        le=4,
        strict=True,
        description="Arithmetic: 4 int8 activations (fast), 1 fp32, 0 onnxruntime's choice. "
        "Without it 4 on CPUs and WebGPU, 0 elsewhere.",
    )
    exclude: list[str] = Field(
        default=[],
        description="Nodes to leave in fp32, as patterns over their names: "
        "`*/layers.0/mlp/down_proj/*`.",
    )
    embeddings: Literal["auto", "float", "quantized"] = Field(
        default="auto",
        description="Token embeddings. auto: shared with a quantized LM head if tied, else fp32. "
        "quantized: 4 bits also if untied (int4 only).",
    )

    @model_validator(mode="before")
    @classmethod
    def _k_quant_is_asymmetric(cls, data: Json) -> Json:
        if isinstance(data, dict) and data.get("algorithm") == "k_quant":
            if data.get("symmetric", False) is True:
                raise ValueError(
                    "k_quant always stores zero points: `symmetric` cannot be true with it"
                )
            return {**data, "symmetric": False}
        return data

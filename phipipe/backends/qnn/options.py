"""What a recipe can ask of the graphs for Qualcomm's NPU: its `quantize:` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from phipipe.backends.widths import Mapped

# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "soc": "The chip of the device. The graphs are compiled for this one alone.",
    "prompt_length": "64 suits chats. 128 or 256 read long prompts faster and take more memory.",
    "context_length": "As long as prompt and answer together; the cache is taken whole at the "
    "start.",
    "keep_8bit": "The default keeps what hurts most. Add o_proj where a gate refuses; take "
    "down_proj out where memory is short.",
    "map": '`{"layers.0.*": {bits: 8}}` for single layers, where `keep_8bit` takes all of a kind. '
    "4 or 8 bits, with one scale for each output. It decides before `keep_8bit`.",
    "rotate": "quarot where int4 misses its gate. spinquant learns from a text and takes longer.",
    "parts": "Leave it out. Set it where a driver refuses a graph of 1 GiB.",
}


class Options(Mapped):
    """What is fixed when the graphs are compiled."""

    soc: Literal["x-elite", "x2-elite", "8-gen-3", "8-elite"] = Field(
        default="x-elite", description="The Snapdragon chip that the contexts are compiled for."
    )
    prompt_length: Literal[32, 64, 128, 256] = Field(
        default=64,
        description="Tokens of a prompt that are read at once; the graph's fixed length.",
    )
    context_length: int = Field(
        default=512,
        ge=64,
        le=8192,
        strict=True,
        description="Positions of the cache: prompt and answer together.",
    )
    keep_8bit: list[str] = Field(
        default=["lm_head", "down_proj"],
        description="int4: linears that stay at 8 bits, as parts of their names.",
    )
    rotate: Literal["quarot", "spinquant"] | None = Field(
        default=None,
        description="Olive turns the weights in their space before they are rounded, so that "
        "none stands out; the "
        "model computes the same. quarot: by fixed (Hadamard) rotations. spinquant: by "
        "rotations that are learned "
        "from the calibration text.",
    )
    parts: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="Graphs that the layers are split into. Default: as few as keep each within "
        "1 GiB at 8 bits.",
    )

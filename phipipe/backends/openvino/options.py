"""What a recipe may ask of NNCF, and of the NPU's pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from phipipe.backends.widths import Mapped

PIPELINE = ("prompt_length", "response_length")  # options of verify_npu; they change no weight


# Option → when to use which of its values.
ADVICE: Mapping[str, str] = {
    "symmetric": "Off is closer. On is what NPUs insist on, and a little faster.",
    "group_size": "128 is the usual choice. 64 or 32 are closer and larger. -1 is for NPUs and "
    "for the smallest file.",
    "ratio": "0.8 where a gate refuses 1.0: the most sensitive fifth gets 8 bits.",
    "backup": "int8_asym is the usual choice. none keeps embeddings and head in 16 bits, for the "
    "last bit of fidelity.",
    "all_layers": "On for the smallest file. Small models suffer most.",
    "awq": "On, with scale_estimation, before any wider layers: the file has the same size.",
    "scale_estimation": "On, with awq. It takes much longer than plain rounding.",
    "gptq": "Where awq and scale_estimation were not enough, and time does not matter.",
    "sensitivity": "Leave it with ratio 1.0, where it does nothing. With less, "
    "max_activation_variance is worth a try.",
    "map": '`{"layers.*.mlp.down_proj": {bits: 8}}` where 4 bits cost too much: it names the '
    "matrices that `ratio` only ranks. 4 or 8 bits in groups of 32 to 256 or by row (-1), or 16 "
    "for floats.",
    "prompt_length": "NPU only. As long as the longest prompt that you will send; each doubling "
    "costs memory.",
    "response_length": "NPU only. As long as the longest answer that you will want.",
}


class Options(Mapped):
    """How weights are rounded. int8 takes `symmetric` and `map`; fp16 and fp32 take none."""

    symmetric: bool = Field(
        default=False,
        strict=True,
        description="Rounding around zero. Off: a zero point per group, for skewed weights; "
        "more accurate.",
    )
    group_size: Literal[-1, 32, 64, 128, 256] = Field(
        default=128,
        description="4-bit weights that share one scale; -1: a whole row. Smaller is more "
        "accurate and larger.",
    )
    ratio: float = Field(
        default=1.0,
        gt=0,
        le=1,
        strict=True,
        description="Share of the weights that get 4 bits; the most sensitive layers of the "
        "rest are stored as "
        "`backup` says. Embeddings and LM head do not count.",
    )
    backup: Literal["none", "int8_sym", "int8_asym"] = Field(
        default="int8_asym",
        description="How embeddings, LM head and the layers outside of `ratio` are stored; "
        "none: in 16 bits.",
    )
    all_layers: bool = Field(
        default=False,
        strict=True,
        description="Embeddings and LM head get 4 bits too, and count for `ratio`.",
    )
    awq: bool = Field(
        default=False,
        strict=True,
        description="Move scale from salient weights to their inputs (activation-aware). Reads "
        "`calibrate.text`.",
    )
    scale_estimation: bool = Field(
        default=False,
        strict=True,
        description="Choose scales by the layers' outputs rather than by their weights. Reads "
        "`calibrate.text`.",
    )
    gptq: bool = Field(
        default=False,
        strict=True,
        description="Round column by column, each correcting the errors so far; slow. Reads "
        "`calibrate.text`.",
    )
    sensitivity: Literal[
        "weight_quantization_error",
        "hessian_input_activation",
        "mean_activation_variance",
        "max_activation_variance",
        "mean_activation_magnitude",
    ] = Field(
        default="weight_quantization_error",
        description="How `ratio` below 1 ranks layers. All but weight_quantization_error read "
        "`calibrate.text`.",
    )
    prompt_length: int = Field(
        default=1024,
        ge=64,
        le=131_072,
        strict=True,
        description="NPU: the longest prompt, in tokens.",
    )
    response_length: int = Field(
        default=128,
        ge=32,
        le=131_072,
        strict=True,
        description="NPU: room for this many tokens of answer.",
    )

    @property
    def learns(self) -> bool:
        """Whether the calibration text is read."""
        return (
            self.awq
            or self.scale_estimation
            or self.gptq
            or self.sensitivity != "weight_quantization_error"
        )

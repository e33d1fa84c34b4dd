"""The fixed sizes of a graph, from a Phi-3's config. Light: no toolchain is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phipipe.errors import StepFailed
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed sizes of one graph, and what the checkpoint's config says of the model."""

    length: int
    context: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    rotary: int
    inner: int
    epsilon: float
    inverse_frequencies: tuple[float, ...]
    attention_factor: float


def shape_of(config: Mapping[str, Json], length: int, context: int) -> Shape:
    """``Shape`` from a Phi-3 ``config.json``.

    LongRoPE's factors are chosen once, by ``context``, as they are for prompts of that length; the
    attention factor is that of transformers, sqrt(1 + ln(scale) / ln(original context)).

    Raises:
        StepFailed: the config is not of a model that this module builds.
    """
    if config.get("model_type") != "phi3":
        raise StepFailed(
            f"static graphs are built for phi3 models, not `{config.get('model_type')}`"
        )
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    rotary = int(size * config.get("partial_rotary_factor", 1.0))
    base, factor = config.get("rope_theta", 10000.0), 1.0
    frequencies = [base ** -(i / rotary) for i in range(0, rotary, 2)]
    if config.get("rope_scaling"):
        frequencies, factor = _scaled(config, frequencies, context)
    return Shape(
        length=length,
        context=context,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=size,
        rotary=rotary,
        inner=config["intermediate_size"],
        epsilon=config["rms_norm_eps"],
        inverse_frequencies=tuple(frequencies),
        attention_factor=factor,
    )


def _scaled(
    config: Mapping[str, Json], frequencies: Sequence[float], context: int
) -> tuple[list[float], float]:
    """``frequencies`` under LongRoPE, and the factor of attention that belongs to it."""
    scaling = config["rope_scaling"]
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("longrope", "su"):
        raise StepFailed(f"static graphs know no rotary scaling `{kind}`")
    original = config["original_max_position_embeddings"]
    chosen = scaling["long_factor" if context > original else "short_factor"]
    scale = config["max_position_embeddings"] / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return [f / c for f, c in zip(frequencies, chosen, strict=True)], factor

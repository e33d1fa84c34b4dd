"""The fixed sizes of a graph, from a model's config. Light: no toolchain is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from phipipe.backends.qnn import rotary
from phipipe.errors import StepFailed
from phipipe.steps import Json

# Decoders of one block: RMSNorm, attention, RMSNorm, gated SiLU. They differ in joined or single
# projections, biases, norms of queries and keys, and layers without positions.
MODEL_TYPES = ("phi3", "llama", "mistral", "qwen2", "qwen3", "smollm3")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed sizes of one graph, and what the checkpoint's config says of the model.

    ``unrotated`` are the layers whose attention takes no positions, as every fourth of SmolLM3's.
    """

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
    unrotated: frozenset[int] = frozenset()


def shape_of(config: Mapping[str, Json], length: int, context: int) -> Shape:
    """``Shape`` from the ``config.json`` of one of ``MODEL_TYPES``.

    Raises:
        StepFailed: the config is not of a model that this module builds.
    """
    if config.get("model_type") not in MODEL_TYPES:
        raise StepFailed(
            f"static graphs are built for {', '.join(MODEL_TYPES)} models, "
            f"not `{config.get('model_type')}`"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise StepFailed(f"static graphs know no activation `{config['hidden_act']}`, only `silu`")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    frequencies, factor = rotary.frequencies(config, size, context)
    return Shape(
        length=length,
        context=context,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=size,
        rotary=2 * len(frequencies),
        inner=config["intermediate_size"],
        epsilon=config["rms_norm_eps"],
        inverse_frequencies=tuple(frequencies),
        attention_factor=factor,
        unrotated=unrotated(config),
    )


def unrotated(config: Mapping[str, Json]) -> frozenset[int]:
    """The layers without positions. In SmolLM3's ``no_rope_layers`` 1 is a layer *with* them; where
    the list is missing, every ``no_rope_layer_interval``-th has none."""
    if config.get("model_type") != "smollm3":
        return frozenset()
    interval = config.get("no_rope_layer_interval") or 4
    layers = range(config["num_hidden_layers"])
    flags = config.get("no_rope_layers") or [(i + 1) % interval for i in layers]
    return frozenset(i for i in layers if not flags[i])

"""The shapes that the Phi family's published ``config.json``s have.

They are those of the configs on the hub, of microsoft/olive-recipes and of each runtime's own
tests. LongRoPE's lists of factors have the members' lengths, but stand-ins for values: no decision
depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.steps import Json

Config = Mapping[str, Json]


def phi(hidden: int, layers: int, rotary: float) -> dict[str, Json]:
    """Phi-1 to Phi-2, of ``layers`` layers; ``rotary`` is the share of dimensions that turn."""
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": rotary,
        "layer_norm_eps": 1e-05,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    }


MINI: Config = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": 2047,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_WIDE: Config = {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
MEDIUM: Config = {**MINI, **_WIDE, "num_key_value_heads": 10}


def longrope(pairs: int, kind: str = "longrope") -> dict[str, Json]:
    """What 128k models add; ``pairs`` is half the number of rotary dimensions of a head."""
    scaling = {"type": kind, "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    return {"max_position_embeddings": 131072, "rope_scaling": scaling, "sliding_window": 262144}


PHI4: Config = {
    **MEDIUM,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000.0,
    "sliding_window": None,
}
REASONING: Config = {
    **PHI4,
    "max_position_embeddings": 32768,
    "original_max_position_embeddings": 32768,
    "rope_theta": 500000.0,
}
PHI4_MINI: Config = {
    **MINI,
    **longrope(48),
    "vocab_size": 200064,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
}
MOE: Config = {
    **MINI,
    **longrope(64),
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "num_key_value_heads": 8,
    "sliding_window": 131072,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "lm_head_bias": True,
}


def slim(inner: int) -> dict[str, Json]:
    """SlimMoE: Phi-3.5-MoE with narrower experts, before its context was extended."""
    short = {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047}
    return {**MOE, **short, "intermediate_size": inner}


def remote(base: Config, architecture: str, model_type: str, **more: Json) -> dict[str, Json]:
    """``base`` under the names of an architecture that is not plain text, or not built in."""
    return {**base, "architectures": [architecture], "model_type": model_type, **more}

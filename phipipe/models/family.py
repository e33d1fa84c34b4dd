"""The Phi family as data: what the ``config.json`` of every published member says of its shape.

Nothing here decides what works where; rules do, on the shape alone, so that fine-tunes are treated
like their originals. Shapes are those of the configs on the hub, of microsoft/olive-recipes and of
each runtime's own tests. LongRoPE's lists of factors have the members' lengths, but stand-ins for
values: no decision depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Member:
    """Repositories of one shape. ``marks`` are the keys of ``config`` that tell it from others of
    its architecture."""

    name: str
    repos: tuple[str, ...]
    config: Config
    marks: tuple[str, ...] = ()
    # "sentencepiece", "gpt2" (byte-level BPE in tokenizer.json) or "code" (a class of its own)
    tokenizer: str
    # transformers has the architecture built in; the others exist as code on the hub alone
    native: bool = True
    row: str  # members that every runtime treats alike share a row of the support table


def of(config: Config) -> Member | None:
    """The first member that ``config`` has the architecture and the marks of; None for other
    models."""
    architecture = (config.get("architectures") or [None])[0]
    for member in MEMBERS:
        same = all(config.get(key) == member.config.get(key) for key in member.marks)
        if architecture == member.config["architectures"][0] and same:
            return member
    return None


def is_native(architecture: str) -> bool:
    """False for members that exist as remote code only, whose layout of files nothing here can
    read."""
    return all(m.native for m in MEMBERS if m.config["architectures"][0] == architecture)


def parameters(config: Config) -> int:
    """How many parameters a model of ``config`` has: phi, phi3 and phimoe exactly, others as if
    they were phi3."""
    hidden, layers, inner = (
        int(config[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    queries, joined = heads * size, (heads + 2 * kv_heads) * size
    kind, table = config["model_type"], int(config["vocab_size"]) * hidden
    total = table * (1 if config.get("tie_word_embeddings") else 2)
    if kind == "phi":  # biases everywhere, one norm per layer
        layer = (
            joined * (hidden + 1) + hidden * (queries + 1) + inner * (2 * hidden + 1) + 3 * hidden
        )
        return total + layers * layer + 2 * hidden + int(config["vocab_size"])
    layer = hidden * (joined + queries) + 2 * hidden
    if kind != "phimoe":
        return total + layers * (layer + 3 * hidden * inner) + hidden
    layer += 2 * hidden + (
        joined + hidden if config.get("attention_bias") else 0
    )  # norms with biases
    layer += int(config["num_local_experts"]) * (hidden + 3 * hidden * inner)
    return (
        total
        + layers * layer
        + 2 * hidden
        + (int(config["vocab_size"]) if config.get("lm_head_bias") else 0)
    )


def _phi(hidden: int, layers: int, rotary: float) -> dict[str, Any]:
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


_MINI: Config = {
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
_MEDIUM: Config = {**_MINI, **_WIDE, "num_key_value_heads": 10}


def _longrope(pairs: int, kind: str = "longrope") -> dict[str, Any]:
    """What 128k models add; ``pairs`` is half the number of rotary dimensions of a head."""
    scaling = {"type": kind, "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    return {"max_position_embeddings": 131072, "rope_scaling": scaling, "sliding_window": 262144}


_PHI4: Config = {
    **_MEDIUM,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000.0,
    "sliding_window": None,
}
_REASONING: Config = {
    **_PHI4,
    "max_position_embeddings": 32768,
    "original_max_position_embeddings": 32768,
    "rope_theta": 500000.0,
}
_PHI4_MINI: Config = {
    **_MINI,
    **_longrope(48),
    "vocab_size": 200064,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
}
_MOE: Config = {
    **_MINI,
    **_longrope(64),
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


def _slim(inner: int) -> dict[str, Any]:
    """SlimMoE: Phi-3.5-MoE with narrower experts, before its context was extended."""
    short = {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047}
    return {**_MOE, **short, "intermediate_size": inner}


def _remote(base: Config, architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    return {**base, "architectures": [architecture], "model_type": model_type, **more}


_SPM, _BPE = "sentencepiece", "gpt2"
_LONG, _DENSE = "Phi-3-mini-128k, Phi-3-medium-128k, Phi-3.5-mini", "Phi-4, Phi-4-reasoning(-plus)"

MEMBERS: tuple[Member, ...] = (
    Member(
        name="Phi-1.5",
        repos=("microsoft/phi-1", "microsoft/phi-1_5"),
        config=_phi(2048, 24, 0.5),
        marks=("hidden_size", "num_hidden_layers"),
        tokenizer=_BPE,
        row="Phi-1, Phi-1.5, Phi-2",
    ),
    Member(
        name="Phi-2",
        repos=("microsoft/phi-2",),
        config=_phi(2560, 32, 0.4),
        marks=("hidden_size", "num_hidden_layers"),
        tokenizer=_BPE,
        row="Phi-1, Phi-1.5, Phi-2",
    ),
    Member(
        name="Phi-3-mini-4k",
        repos=("microsoft/Phi-3-mini-4k-instruct",),
        config=_MINI,
        marks=("hidden_size", "max_position_embeddings", "sliding_window"),
        tokenizer=_SPM,
        row="Phi-3-mini-4k, Phi-3-medium-4k",
    ),
    Member(
        name="Phi-3-medium-4k",
        repos=("microsoft/Phi-3-medium-4k-instruct",),
        config=_MEDIUM,
        marks=("hidden_size", "max_position_embeddings", "sliding_window"),
        tokenizer=_SPM,
        row="Phi-3-mini-4k, Phi-3-medium-4k",
    ),
    Member(
        name="Phi-3.5-mini",
        repos=("microsoft/Phi-3.5-mini-instruct", "microsoft/Phi-3-mini-128k-instruct"),
        config={**_MINI, **_longrope(48)},
        marks=("hidden_size", "max_position_embeddings", "vocab_size"),
        tokenizer=_SPM,
        row=_LONG,
    ),
    Member(
        name="Phi-3-medium-128k",  # its config still has LongRoPE's first name
        repos=("microsoft/Phi-3-medium-128k-instruct",),
        config={**_MEDIUM, **_longrope(64, "su"), "sliding_window": 131072},
        marks=("hidden_size", "max_position_embeddings", "vocab_size"),
        tokenizer=_SPM,
        row=_LONG,
    ),
    Member(
        name="Phi-4",
        repos=("microsoft/phi-4",),
        config=_PHI4,
        marks=("hidden_size", "vocab_size", "max_position_embeddings"),
        tokenizer=_BPE,
        row=_DENSE,
    ),
    Member(
        name="Phi-4-reasoning",
        repos=("microsoft/Phi-4-reasoning", "microsoft/Phi-4-reasoning-plus"),
        config=_REASONING,
        marks=("hidden_size", "vocab_size", "max_position_embeddings"),
        tokenizer=_BPE,
        row=_DENSE,
    ),
    Member(
        name="Phi-4-mini",
        repos=("microsoft/Phi-4-mini-instruct", "microsoft/Phi-4-mini-reasoning"),
        config=_PHI4_MINI,
        marks=("hidden_size", "vocab_size", "tie_word_embeddings"),
        tokenizer=_BPE,
        row="Phi-4-mini(-reasoning)",
    ),
    Member(
        name="Phi-3.5-MoE",
        repos=("microsoft/Phi-3.5-MoE-instruct",),
        config=_MOE,
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-3.5-MoE",
    ),
    Member(
        name="Phi-mini-MoE",
        repos=("microsoft/Phi-mini-MoE-instruct",),
        config=_slim(960),
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-mini-MoE",
    ),
    Member(
        name="Phi-tiny-MoE",
        repos=("microsoft/Phi-tiny-MoE-instruct",),
        config={**_slim(448), "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128},
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-tiny-MoE",
    ),
    Member(
        name="Phi-3-small",
        repos=("microsoft/Phi-3-small-8k-instruct", "microsoft/Phi-3-small-128k-instruct"),
        config=_remote(
            {
                key: value
                for key, value in _MINI.items()
                if key not in ("intermediate_size", "sliding_window")
            },
            "Phi3SmallForCausalLM",
            "phi3small",
            vocab_size=100352,
            hidden_size=4096,
            ff_intermediate_size=14336,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            original_max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        tokenizer="code",
        native=False,
        row="Phi-3-small",
    ),
    Member(
        name="Phi-4-mini-flash",
        repos=("microsoft/Phi-4-mini-flash-reasoning",),
        config=_remote(
            _PHI4_MINI,
            "Phi4FlashForCausalLM",
            "phi4flash",
            max_position_embeddings=65536,
            original_max_position_embeddings=65536,
            rope_scaling=None,
            sliding_window=512,
        ),
        tokenizer=_BPE,
        native=False,
        row="Phi-4-mini-flash",
    ),
    Member(
        name="Phi-3.5-vision",
        repos=("microsoft/Phi-3.5-vision-instruct", "microsoft/Phi-3-vision-128k-instruct"),
        config=_remote(
            {**_MINI, **_longrope(48)},
            "Phi3VForCausalLM",
            "phi3_v",
            img_processor={"name": "clip_vision_model", "image_dim_out": 1024},
            embd_layer={"embedding_cls": "image"},
        ),
        tokenizer=_SPM,
        native=False,
        row="Phi-3-vision, Phi-3.5-vision",
    ),
    Member(
        name="Phi-4-multimodal",
        repos=("microsoft/Phi-4-multimodal-instruct",),
        config=_remote(
            _PHI4_MINI,
            "Phi4MMForCausalLM",
            "phi4mm",
            embd_layer={
                "image_embd_layer": {"crop_size": 448},
                "audio_embd_layer": {"compression_rate": 8},
            },
            vision_lora={"r": 256, "lora_alpha": 512},
            speech_lora={"r": 320, "lora_alpha": 640},
        ),
        tokenizer=_BPE,
        native=False,
        row="Phi-4-multimodal",
    ),
    Member(
        name="Phi-4-reasoning-vision",
        repos=("microsoft/Phi-4-reasoning-vision-15B",),
        config=_remote(
            _REASONING, "Phi4ForCausalLMV", "phi4-siglip", vision_config={"model_type": "siglip2"}
        ),
        tokenizer=_BPE,
        native=False,
        row="Phi-4-reasoning-vision",
    ),
)

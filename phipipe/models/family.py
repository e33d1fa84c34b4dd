"""The Phi family as data: what the ``config.json`` of every published member says of its shape.

Nothing here decides what works where; rules do, on the shape alone, so that fine-tunes are treated
like their originals.
"""

from __future__ import annotations

from phipipe.models.family_configs import (
    MEDIUM,
    MINI,
    MOE,
    PHI4,
    PHI4_MINI,
    REASONING,
    Config,
    longrope,
    phi,
    remote,
    slim,
)
from phipipe.models.members import Member as Member
from phipipe.models.neighbours import LLAMA_PHI4, NEIGHBOURS


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


_SPM, _BPE = "sentencepiece", "gpt2"
_LONG, _DENSE = "Phi-3-mini-128k, Phi-3-medium-128k, Phi-3.5-mini", "Phi-4, Phi-4-reasoning(-plus)"

MEMBERS: tuple[Member, ...] = (
    Member(
        name="Phi-1.5",
        repos=("microsoft/phi-1", "microsoft/phi-1_5"),
        config=phi(2048, 24, 0.5),
        marks=("hidden_size", "num_hidden_layers"),
        tokenizer=_BPE,
        row="Phi-1, Phi-1.5, Phi-2",
    ),
    Member(
        name="Phi-2",
        repos=("microsoft/phi-2",),
        config=phi(2560, 32, 0.4),
        marks=("hidden_size", "num_hidden_layers"),
        tokenizer=_BPE,
        row="Phi-1, Phi-1.5, Phi-2",
    ),
    Member(
        name="Phi-3-mini-4k",
        repos=("microsoft/Phi-3-mini-4k-instruct",),
        config=MINI,
        marks=("hidden_size", "max_position_embeddings", "sliding_window"),
        tokenizer=_SPM,
        row="Phi-3-mini-4k, Phi-3-medium-4k",
    ),
    Member(
        name="Phi-3-medium-4k",
        repos=("microsoft/Phi-3-medium-4k-instruct",),
        config=MEDIUM,
        marks=("hidden_size", "max_position_embeddings", "sliding_window"),
        tokenizer=_SPM,
        row="Phi-3-mini-4k, Phi-3-medium-4k",
    ),
    Member(
        name="Phi-3.5-mini",
        repos=("microsoft/Phi-3.5-mini-instruct", "microsoft/Phi-3-mini-128k-instruct"),
        config={**MINI, **longrope(48)},
        marks=("hidden_size", "max_position_embeddings", "vocab_size"),
        tokenizer=_SPM,
        row=_LONG,
    ),
    Member(
        name="Phi-3-medium-128k",  # its config still has LongRoPE's first name
        repos=("microsoft/Phi-3-medium-128k-instruct",),
        config={**MEDIUM, **longrope(64, "su"), "sliding_window": 131072},
        marks=("hidden_size", "max_position_embeddings", "vocab_size"),
        tokenizer=_SPM,
        row=_LONG,
    ),
    Member(
        name="Phi-4",
        repos=("microsoft/phi-4",),
        config=PHI4,
        marks=("hidden_size", "vocab_size", "max_position_embeddings"),
        tokenizer=_BPE,
        row=_DENSE,
    ),
    Member(
        name="Phi-4-reasoning",
        repos=("microsoft/Phi-4-reasoning", "microsoft/Phi-4-reasoning-plus"),
        config=REASONING,
        marks=("hidden_size", "vocab_size", "max_position_embeddings"),
        tokenizer=_BPE,
        row=_DENSE,
    ),
    LLAMA_PHI4,
    Member(
        name="Phi-4-mini",
        repos=("microsoft/Phi-4-mini-instruct", "microsoft/Phi-4-mini-reasoning"),
        config=PHI4_MINI,
        marks=("hidden_size", "vocab_size", "tie_word_embeddings"),
        tokenizer=_BPE,
        row="Phi-4-mini(-reasoning)",
    ),
    Member(
        name="Phi-3.5-MoE",
        repos=("microsoft/Phi-3.5-MoE-instruct",),
        config=MOE,
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-3.5-MoE",
    ),
    Member(
        name="Phi-mini-MoE",
        repos=("microsoft/Phi-mini-MoE-instruct",),
        config=slim(960),
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-mini-MoE",
    ),
    Member(
        name="Phi-tiny-MoE",
        repos=("microsoft/Phi-tiny-MoE-instruct",),
        config={**slim(448), "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128},
        marks=("intermediate_size", "num_attention_heads"),
        tokenizer=_SPM,
        row="Phi-tiny-MoE",
    ),
    Member(
        name="Phi-3-small",
        repos=("microsoft/Phi-3-small-8k-instruct", "microsoft/Phi-3-small-128k-instruct"),
        config=remote(
            {
                key: value
                for key, value in MINI.items()
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
        config=remote(
            PHI4_MINI,
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
        config=remote(
            {**MINI, **longrope(48)},
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
        config=remote(
            PHI4_MINI,
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
        config=remote(
            REASONING, "Phi4ForCausalLMV", "phi4-siglip", vision_config={"model_type": "siglip2"}
        ),
        tokenizer=_BPE,
        native=False,
        row="Phi-4-reasoning-vision",
    ),
    *NEIGHBOURS,
)

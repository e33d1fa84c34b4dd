"""Small checkpoints of decoders beside Phi that share its block, with random weights.

Runs in the torch toolchain: ``python -m testing.dense_checkpoints ROOT`` leaves ROOT/NAME for each
of ``VARIANTS``: the embedded model's tokenizer, a config in the hub's spelling, bf16 weights in the
hub's names. Biases and norms are random, too: as they are made, they would change nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe.hub import take

SEED = 7
COMMON: Mapping[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
SLOWED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: Mapping[str, dict[str, Any]] = {
    "llama": {**LLAMA, "attention_bias": False, "mlp_bias": False},
    "llama-biased": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {
        **LLAMA,
        "tie_word_embeddings": True,
        "rope_scaling": {**SLOWED, "original_max_position_embeddings": 64},
    },
    "llama-linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-yarn": {
        **LLAMA,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {
        **COMMON,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 48,
        "sliding_window": None,
    },
    "qwen2": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "qwen3": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 64,
        "attention_bias": False,
        "use_sliding_window": False,
    },
    "smollm3": {
        **COMMON,
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "use_sliding_window": False,
    },
}


def make(name: str, folder: Path) -> None:
    """Write the checkpoint ``name`` of ``VARIANTS`` into the new ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder)
    tiny = json.loads((folder / "config.json").read_text("utf-8"))
    copied = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    config = {**VARIANTS[name], **{key: tiny.get(key) for key in copied}}
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                value.normal_(0, 0.5)
            elif "norm" in key:
                value.normal_(1, 0.2)
            else:
                value.normal_(0, 1.5 * value.shape[-1] ** -0.5)
    made = folder / "made"
    model.to(torch.bfloat16).save_pretrained(made)
    shutil.move(made / "model.safetensors", folder / "model.safetensors")
    shutil.rmtree(made)


if __name__ == "__main__":
    for variant in VARIANTS:
        make(variant, Path(sys.argv[1]) / variant)

"""What follows from a config alone: how many parameters, how wide heads are, what is tied."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models.family_configs import Config

# What a config that leaves a key out means by it: transformers' defaults, where not as Phi's.
_TIED = ("smollm3", "gemma3_text")
_HEADS: Mapping[str, int] = {"qwen3": 128, "gemma3_text": 256}
_WINDOWS: Mapping[str, int] = {"mistral": 4096, "gemma3_text": 4096}
_SWITCHED = ("qwen2", "qwen3", "smollm3")  # a flag of theirs says whether there is a window


def parameters(config: Config) -> int:
    """How many parameters a model of ``config`` has: those of ``LAYOUTS`` exactly, others as if
    they were phi3."""
    hidden, layers, inner = (
        int(config[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads, kind = int(config["num_attention_heads"]), str(config["model_type"])
    kv_heads, size = int(config.get("num_key_value_heads") or heads), head_size(config)
    queries, joined = heads * size, (heads + 2 * kv_heads) * size
    table = int(config["vocab_size"]) * hidden
    total = table * (1 if is_tied(config) else 2)
    if kind == "phi":  # biases everywhere, one norm per layer
        layer = (
            joined * (hidden + 1) + hidden * (queries + 1) + inner * (2 * hidden + 1) + 3 * hidden
        )
        return total + layers * layer + 2 * hidden + int(config["vocab_size"])
    layer = hidden * (joined + queries) + 2 * hidden
    if kind != "phimoe":
        layer += _extras(config, joined, size) + 3 * hidden * inner
        return total + layers * layer + hidden
    # norms with biases
    layer += 2 * hidden + (joined + hidden if config.get("attention_bias") else 0)
    layer += int(config["num_local_experts"]) * (hidden + 3 * hidden * inner)
    return (
        total
        + layers * layer
        + 2 * hidden
        + (int(config["vocab_size"]) if config.get("lm_head_bias") else 0)
    )


def _extras(config: Config, joined: int, size: int) -> int:
    """Parameters that a layer has besides Phi-3's: biases and norms."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    kind, count = config["model_type"], 0
    if kind == "qwen2":
        return joined
    if kind in ("qwen3", "gemma3_text"):
        count += 2 * size
    if kind == "gemma3_text":
        count += 2 * hidden
    if kind in ("llama", "qwen3", "smollm3", "gemma3_text") and config.get("attention_bias"):
        count += joined + hidden
    if kind in ("llama", "smollm3") and config.get("mlp_bias"):
        count += 2 * inner + hidden
    return count


def is_tied(config: Config) -> bool:
    """Whether the LM head is the embedding."""
    return bool(config.get("tie_word_embeddings", config["model_type"] in _TIED))


def head_size(config: Config) -> int:
    """Dimensions of an attention head."""
    usual = int(config["hidden_size"]) // int(config["num_attention_heads"])
    named = config.get("head_dim", _HEADS.get(str(config["model_type"])))
    return int(named or usual)


def sliding_window(config: Config) -> int | None:
    """Tokens that a layer with a sliding window sees; None if no layer has one."""
    kind = str(config["model_type"])
    if kind in _SWITCHED and not config.get("use_sliding_window"):
        return None
    window = config.get("sliding_window", _WINDOWS.get(kind))
    return None if window is None else int(window)

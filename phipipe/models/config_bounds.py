"""Kinds and bounds of every key of a checkpoint's small JSON files that some tool reads.

The bounds are wide: the whole Phi family and the largest models of the field lie far inside. They
keep out what no model has (no heads, a billion layers, a context of -1, text for a number).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Bound(NamedTuple):
    """Of a number; ``many``: a list of such numbers will do too. Null and absent mean the same."""

    low: float
    high: float
    whole: bool = True
    many: bool = False


_TOKEN = Bound(-1, 2**22, many=True)
_SHARE, _COUNT, _LENGTH, _FACTORS = (
    Bound(0, 1, False),
    Bound(1, 2**20),
    Bound(1, 2**27),
    Bound(1e-3, 1e5, False, True),
)
NUMBERS: Mapping[str, Bound] = {
    "vocab_size": Bound(1, 2**22),
    "hidden_size": Bound(1, 2**16),
    "intermediate_size": _COUNT,
    "ff_intermediate_size": _COUNT,
    "num_hidden_layers": Bound(1, 2**10),
    "num_attention_heads": Bound(1, 2**10),
    "num_key_value_heads": Bound(1, 2**10),
    "head_dim": Bound(1, 2**12),
    "max_position_embeddings": _LENGTH,
    "original_max_position_embeddings": _LENGTH,
    "sliding_window": Bound(0, 2**27),
    "num_local_experts": Bound(0, 2**12),
    "num_experts": Bound(0, 2**12),
    "num_experts_per_tok": Bound(0, 2**12),
    "num_nextn_predict_layers": Bound(0, 2**6),
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
    "pad_token_id": _TOKEN,
    "unk_token_id": _TOKEN,
    "decoder_start_token_id": _TOKEN,
    "rope_theta": Bound(1e-3, 1e12, False),
    "rope_local_base_freq": Bound(1e-3, 1e12, False),
    "partial_rotary_factor": Bound(1e-3, 1, False),
    "factor": Bound(1e-3, 1e6, False),
    "attention_factor": Bound(1e-6, 1e6, False),
    "beta_fast": Bound(0, 1e6, False),
    "beta_slow": Bound(0, 1e6, False),
    "low_freq_factor": Bound(0, 1e6, False),
    "high_freq_factor": Bound(0, 1e6, False),
    "mscale": Bound(0, 1e6, False),
    "mscale_all_dim": Bound(0, 1e6, False),
    "short_mscale": Bound(1e-6, 1e6, False),
    "long_mscale": Bound(1e-6, 1e6, False),
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
    "rms_norm_eps": _SHARE,
    "layer_norm_eps": _SHARE,
    "norm_eps": _SHARE,
    "attention_dropout": _SHARE,
    "attn_pdrop": _SHARE,
    "embd_pdrop": _SHARE,
    "resid_pdrop": _SHARE,
    "hidden_dropout": _SHARE,
    "initializer_range": Bound(0, 1e3, False),
    "router_aux_loss_coef": Bound(0, 1e6, False),
    "router_jitter_noise": Bound(0, 1e6, False),
    "input_jitter_noise": Bound(0, 1e6, False),
    "pretraining_tp": Bound(1, 2**10),
    "r": Bound(1, 2**16),
    "lora_alpha": Bound(0, 1e6, False),
    "crop_size": Bound(1, 2**16),
    "image_size": Bound(1, 2**16, many=True),
    "patch_size": Bound(1, 2**12, many=True),
    "image_dim_out": Bound(1, 2**16),
    "num_img_tokens": Bound(1, 2**16),
    "temperature": Bound(0, 1e6, False),
    "top_p": Bound(0, 1e6, False),
    "top_k": Bound(0, 2**22),
    "repetition_penalty": Bound(0, 1e6, False),
    "max_length": Bound(0, 2**31),
    "max_new_tokens": Bound(0, 2**31),
}
FLAGS = frozenset(
    [
        "add_bos_token",
        "add_eos_token",
        "attention_bias",
        "do_sample",
        "lm_head_bias",
        "mlp_bias",
        "qk_layernorm",
        "tie_word_embeddings",
        "truncate",
        "use_cache",
        "use_sliding_window",
    ]
)
_NAMES = "model_type", "quant_method", "rope_type", "tokenizer_class"
TEXTS = frozenset(
    (*_NAMES, "_name_or_path", "hidden_act", "hidden_activation", "transformers_version")
)
DTYPES = frozenset(
    f"{place}{name}"
    for place in ("", "torch.")
    for name in ("float32", "float16", "bfloat16", "float64")
)
# transformers' own.
ACTIVATIONS = frozenset(
    (
        *(
            "gelu",
            "gelu_10",
            "gelu_accurate",
            "gelu_fast",
            "gelu_new",
            "gelu_python",
            "gelu_python_tanh",
        ),
        *(
            "gelu_pytorch_tanh",
            "laplace",
            "leaky_relu",
            "linear",
            "mish",
            "prelu",
            "quick_gelu",
            "relu",
            "relu2",
        ),
        *("relu6", "sigmoid", "silu", "swish", "tanh", "xielu"),
    )
)
CHOICES: Mapping[str, frozenset[str]] = {
    "dtype": DTYPES | {"auto"},
    "torch_dtype": DTYPES | {"auto"},
}
TABLES = frozenset(
    [
        "audio_config",
        "audio_embd_layer",
        "audio_processor",
        "auto_map",
        "embd_layer",
        "id2label",
        "image_embd_layer",
        "img_processor",
        "label2id",
        "quantization",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "speech_lora",
        "text_config",
        "vision_config",
        "vision_lora",
    ]
)

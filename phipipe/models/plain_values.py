"""Keys of a config that name a part which its architecture does not have.

Code that was trained with such a part computes with it; transformers' class of the architecture
does not know the key and leaves the part out, and so would the baseline: no comparison could tell.
Only the value that means "without" is let through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.layouts import LAYOUTS
from phipipe.steps import Json

Plain = Callable[[Json], bool]
_GEMMA, _LLAMA, _QWEN = ("gemma3_text",), ("llama", "mistral", "smollm3"), ("qwen2", "qwen3")
_ALL = ("phi", "phi3", "phi3_v", "phi4mm", "phimoe", *_LLAMA, *_QWEN, *_GEMMA)


def _is_off(value: Json) -> bool:
    return value in (None, False, 0, [], {})


def _is_one(value: Json) -> bool:
    return value is None or (value == 1 and value is not True)


def _is_on(value: Json) -> bool:
    return value is None or value is True


def _among(*names: str) -> Plain:
    return lambda value: value is None or value in names


def _of_one_kind(value: Json) -> bool:
    return not isinstance(value, list) or len(set(value)) < 2


_SILU = _among("silu", "swish")
_TANH_GELU = _among("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
# key → (its plain value, model types that have such a part and read the key)
_KEYS: Mapping[str, tuple[Plain, tuple[str, ...]]] = {
    # scales of activations and logits: Granite, Cohere, MiniCPM, Grok
    "logit_scale": (_is_one, ()),
    "logits_scaling": (_is_one, ()),
    "embedding_multiplier": (_is_one, ()),
    "full_attn_mod": (_is_one, ()),
    "interpolate_factor": (_is_one, ()),
    "embedding_multiplier_scale": (_is_one, ()),
    "output_multiplier_scale": (_is_one, ()),
    "residual_multiplier": (_is_one, ()),
    "scale_emb": (_is_one, ()),
    "attention_multiplier": (_is_off, ()),
    "scale_depth": (_is_off, ()),
    "dim_model_base": (_is_off, ()),
    "query_pre_attn_scalar": (_is_off, _GEMMA),
    # clipping: OLMo, DBRX, Gemma 2
    "clip_qkv": (_is_off, ()),
    "attn_logit_softcapping": (_is_off, ()),
    "final_logit_softcapping": (_is_off, ()),
    "logits_soft_cap": (_is_off, ()),
    # norms of queries and keys: only some types have a key for it
    "qk_layernorm": (_is_off, ("phi",)),
    "qk_norm": (_is_off, ()),
    "use_qk_norm": (_is_off, ()),
    # biases
    "attention_bias": (_is_off, ("llama", "phimoe", "qwen3", "smollm3", *_GEMMA)),
    "attention_out_bias": (_is_off, ()),
    "qkv_bias": (_is_off, ("qwen2",)),
    "mlp_bias": (_is_off, ("llama", "smollm3")),
    "lm_head_bias": (_is_off, ("phimoe",)),
    # arrangement of a layer
    "use_parallel_residual": (_is_off, ("phi",)),
    "parallel_attn": (_is_off, ("phi",)),
    "alibi": (_is_off, ()),
    "hidden_size_per_layer_input": (_is_off, ()),
    "kv_lora_rank": (_is_off, ()),
    "num_kv_shared_layers": (_is_off, ()),
    "q_lora_rank": (_is_off, ()),
    # which positions and which tokens a layer sees
    "attention_chunk_size": (_is_off, ()),
    "attn_temperature_tuning": (_is_off, ()),
    "is_causal": (_is_on, ()),
    "layer_types": (_of_one_kind, ("smollm3", *_QWEN, *_GEMMA)),
    "no_rope_layer_interval": (_is_off, ("smollm3",)),
    "no_rope_layers": (_is_off, ("smollm3",)),
    "partial_rotary_factor": (_is_one, ("phi", "phi3", "phi3_v", "phi4mm")),
    "rope_interleaved": (_is_off, ()),
    "rotary_interleaved": (_is_off, ()),
    "use_bidirectional_attention": (_is_off, ()),
    "use_mrope": (_is_off, ()),
    # experts in a dense model
    "n_routed_experts": (_is_off, ()),
    "num_experts": (_is_off, ("phimoe",)),
    "num_local_experts": (_is_off, ("phimoe",)),
}
_ACTIVATIONS: Mapping[str, Plain] = {
    **dict.fromkeys(_ALL, _SILU),
    "phi": _TANH_GELU,
    "gemma3_text": _TANH_GELU,
}


def refuse(path: Path, config: Mapping[str, Json]) -> None:
    """Refuse what ``config``, the content of ``path``, says of parts that its architecture lacks.

    Raises:
        SourceError: names the key.
    """
    layout = LAYOUTS.get(config["architectures"][0])
    if layout is None:
        return
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for key, (is_plain, readers) in _KEYS.items():
        for table in (config, rope):
            if layout.model_type not in readers and not is_plain(table.get(key)):
                raise _refusal(path, config, key, table[key])
    _refuse_window(path, config, layout.model_type)
    for key in ("hidden_act", "hidden_activation"):
        if not _ACTIVATIONS[layout.model_type](config.get(key)):
            raise _refusal(path, config, key, config[key])


def _refuse_window(path: Path, config: Mapping[str, Json], model_type: str) -> None:
    """Llama and Phi-2 have no sliding window; Phi-3 and Mistral have one in all layers or none."""
    window = config.get("sliding_window")
    cuts = isinstance(window, int) and 0 < window < config["max_position_embeddings"]
    if cuts and model_type in ("llama", "phi"):
        raise _refusal(path, config, "sliding_window", window)
    if (
        cuts
        and model_type in ("phi3", "mistral")
        and "full_attention" in (config.get("layer_types") or ())
    ):
        raise SourceError(
            f"`{path}` contradicts itself: `sliding_window` ({window}) is shorter than the "
            "context, and `layer_types` lets layers see all of it; tools go by one or the other",
            hint='set `"sliding_window": null`, or take `layer_types` out',
        )


def _refusal(path: Path, config: Mapping[str, Json], key: str, value: Json) -> SourceError:
    shown = json_files.shown(str(value))[:60]
    return SourceError(
        f"`{path}` says `{key}: {shown}`, and {config['architectures'][0]} has no such part: "
        "tools would leave it out without a word",
        hint="take the key out, if the model was trained without that; else `architectures` must "
        "name the class that has it",
    )

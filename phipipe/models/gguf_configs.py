"""The ``config.json`` and the names of tensors that a GGUF stands for.

The keys are those of ggml's specification of GGUF; what they mean for an architecture is as
llama.cpp's converter writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import gguf_rotary
from phipipe.models.gguf_files import Header
from phipipe.models.gguf_settings import Said, decimal
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What an architecture of llama.cpp is called here. ``turned``: rows of queries and keys lie in
    the order of its rotation, pairs side by side."""

    architecture: str
    model_type: str
    turned: bool = False


KINDS: Mapping[str, _Kind] = {
    "phi3": _Kind(architecture="Phi3ForCausalLM", model_type="phi3"),
    "llama": _Kind(architecture="LlamaForCausalLM", model_type="llama", turned=True),
    "qwen2": _Kind(architecture="Qwen2ForCausalLM", model_type="qwen2"),
    "qwen3": _Kind(architecture="Qwen3ForCausalLM", model_type="qwen3"),
}
_ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ENDS = ("eos", "eot", "eom")  # tokens that end an answer
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
# Rotary factors, which the config has.
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_WIDEST = 2**16  # of a head


def kind_of(header: Header) -> _Kind:
    """The architecture of the file.

    Raises:
        SourceError: it is no model, a part of one, or of an architecture that is not read.
    """
    path, settings = header.path, header.settings
    if settings.get("general.type", "model") != "model":
        what = json_files.shown(str(settings["general.type"]))
        raise SourceError(
            f"`{path}` is no model but of the type `{what}`",
            hint="a LoRA adapter is read in PEFT's layout: `source: {base, adapter}`",
        )
    count = settings.get("split.count", 1)
    if count != 1:
        raise SourceError(
            f"`{path}` is one of {json_files.shown(str(count))} parts of a model",
            hint="join them with llama.cpp's `llama-gguf-split --merge`",
        )
    name = settings.get("general.architecture")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise SourceError(
            f"`{path}` is of the architecture `{json_files.shown(str(name))}`; GGUF files are read "
            f"of {', '.join(KINDS)}",
            hint="give the folder of the original, with its safetensors",
        )
    return kind


def plain_name(kind: _Kind, name: str) -> str:
    """The name that a tensor has in a checkpoint; of one that nobody knows, its own."""
    stem, _, end = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{end}"
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return name
    inner = _LAYER[match[2]]
    if kind.model_type == "phi3" and match[2] == "ffn_up":
        inner = "mlp.gate_up_proj"
    return f"model.layers.{match[1]}.{inner}.{match[3]}"


def config_of(header: Header) -> dict[str, Json]:
    """The ``config.json`` of the model in the file; bounds are not checked.

    Raises:
        SourceError: a setting is missing, or stands for something that no config says.
    """
    kind, said = kind_of(header), Said(header)
    heads, hidden = said.whole("attention.head_count"), said.whole("embedding_length")
    if heads < 1 or hidden < heads:
        raise SourceError(f"`{header.path}` has {heads} heads in a width of {hidden}")
    if said.find("expert_count"):
        raise SourceError(f"`{header.path}` has experts; such files are not read")
    size = max(said.whole("attention.key_length", hidden // heads), 1)
    if size > _WIDEST:
        raise SourceError(f"`{header.path}` has heads of {size} numbers")
    config: dict[str, Json] = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": _rows(header),
        "hidden_size": hidden,
        "intermediate_size": said.whole("feed_forward_length"),
        "num_hidden_layers": said.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.whole("attention.head_count_kv", heads),
        "head_dim": size,
        "hidden_act": "silu",
        "max_position_embeddings": said.whole("context_length"),
        "rms_norm_eps": decimal(said.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": decimal(said.number("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": dtype_of(header),
        "use_cache": True,
    }
    if said.whole("attention.value_length", size) != size:
        raise SourceError(f"`{header.path}` has heads of two sizes; such files are not read")
    config |= _biases(header, kind) | _window(said, kind) | _ids(header)
    return config | gguf_rotary.of(said, config)


def dtype_of(header: Header) -> str:
    """torch's name of the dtype that the matrices are widened to."""
    kind = header.tensors["token_embd.weight"].kind
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) == 2}
    if kinds == {"F32"}:
        return "float32"
    return "bfloat16" if kind == "BF16" and kinds <= {"BF16", "F32"} else "float16"


def _rows(header: Header) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise SourceError(f"`{header.path}` has no table of tokens (`token_embd.weight`)")
    return table.shape[0]


def _biases(header: Header, kind: _Kind) -> dict[str, Json]:
    if kind.model_type != "llama":
        return {}
    return {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


def _window(said: Said, kind: _Kind) -> dict[str, Json]:
    window = said.whole("attention.sliding_window", 0)
    if kind.model_type == "phi3":
        return {"sliding_window": window or None}
    if window:
        raise SourceError(
            f"`{said.header.path}` has a sliding window, which its architecture has not"
        )
    return {}


def _ids(header: Header) -> dict[str, Json]:
    """Tokens that begin, end and fill a text."""
    numbers = {
        name: header.settings.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos", "eot", "eom", "padding")
    }
    rows = _rows(header)
    known = {n: v for n, v in numbers.items() if type(v) is int and 0 <= v < rows}
    ends = list(dict.fromkeys(known[name] for name in ENDS if name in known))
    return {
        "bos_token_id": known.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": known.get("padding"),
    }

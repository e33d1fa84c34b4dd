"""The ``config.json`` and the names of tensors that a GGUF stands for.

The keys are those of ggml's specification of GGUF; what they mean for an architecture is as
llama.cpp's converter writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import gguf_files
from phipipe.models.gguf_files import Header
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
# Bands of Llama 3's rotary scaling (Meta's own code): factor of low and of high frequencies; and
# contexts that a model may have been trained on first, Llama's before others.
_LOW, _HIGH = 1.0, 4.0
_MOST = 1e12
_CONTEXTS = (8192, *(2**power for power in range(8, 18) if power != 13))


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


class _Settings:
    def __init__(self, header: Header) -> None:
        self.header = header
        self._prefix = str(header.settings["general.architecture"])

    def find(self, key: str) -> Json:
        return self.header.settings.get(f"{self._prefix}.{key}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.find(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            name = f"{self._prefix}.{key}"
            what = "does not say" if value is None else "has no number as"
            raise SourceError(f"`{self.header.path}` {what} `{name}`")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if int(value) != value:
            raise SourceError(f"`{self.header.path}` has no whole number as `{key}`")
        return int(value)


def config_of(header: Header) -> dict[str, Json]:
    """The ``config.json`` of the model in the file; bounds are not checked.

    Raises:
        SourceError: a setting is missing, or stands for something that no config says.
    """
    kind, said = kind_of(header), _Settings(header)
    heads, hidden = said.whole("attention.head_count"), said.whole("embedding_length")
    if heads < 1 or hidden < heads:
        raise SourceError(f"`{header.path}` has {heads} heads in a width of {hidden}")
    if said.find("expert_count"):
        raise SourceError(f"`{header.path}` has experts; such files are not read")
    size = max(said.whole("attention.key_length", hidden // heads), 1)
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
        "rms_norm_eps": _decimal(said.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(said.number("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": dtype_of(header),
        "use_cache": True,
    }
    if said.whole("attention.value_length", size) != size:
        raise SourceError(f"`{header.path}` has heads of two sizes; such files are not read")
    config |= _biases(header, kind) | _window(said, kind) | _ids(header)
    return config | _rope(said, config)


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


def _decimal(value: float) -> float:
    """The shortest decimal that a 32-bit float stands for: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


def _biases(header: Header, kind: _Kind) -> dict[str, Json]:
    if kind.model_type != "llama":
        return {}
    return {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


def _window(said: _Settings, kind: _Kind) -> dict[str, Json]:
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
    ends = list(dict.fromkeys(known[name] for name in ("eos", "eot", "eom") if name in known))
    return {
        "bos_token_id": known.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": known.get("padding"),
    }


def _rope(said: _Settings, config: Mapping[str, Json]) -> dict[str, Json]:
    header, size = said.header, int(config["head_dim"])
    turned = said.whole("rope.dimension_count", size)
    found: dict[str, Json] = {}
    if turned != size:
        found["partial_rotary_factor"] = turned / size
    kind, factor = said.find("rope.scaling.type"), said.number("rope.scaling.factor", 1.0)
    context = int(config["max_position_embeddings"])
    original = said.whole("rope.scaling.original_context_length", context)
    if f := gguf_files.floats(header, "rope_factors_long.weight"):
        short = gguf_files.floats(header, "rope_factors_short.weight")
        _check_attention(said, context, original)
        return found | {
            "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": f},
            "original_max_position_embeddings": original,
        }
    if f := gguf_files.floats(header, "rope_freqs.weight"):
        return found | {"rope_scaling": _bands(header, f, float(config["rope_theta"]), size)}
    if kind in (None, "none") or (kind == "linear" and factor in (0, 1)):
        return found | {"rope_scaling": None}
    if kind not in ("linear", "yarn"):
        shown = json_files.shown(str(kind))
        raise SourceError(f"`{header.path}` has the rotary scaling `{shown}`, which is not read")
    scaling: dict[str, Json] = {"rope_type": kind, "factor": _decimal(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
    return found | {"rope_scaling": scaling}


def _check_attention(said: _Settings, context: int, original: int) -> None:
    """LongRoPE scales attention by what follows from its two contexts; no config says another
    number (Ding et al. 2024, arXiv:2402.13753)."""
    ratio = context / max(original, 1)
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 < original else 1.0
    factor = said.number("rope.scaling.attn_factor", usual)
    if abs(factor - usual) > 1e-3:
        raise SourceError(
            f"`{said.header.path}` scales attention by {factor:g}; its contexts make it {usual:g}"
        )


def _bands(header: Header, factors: list[float], theta: float, size: int) -> dict[str, Json]:
    """Llama 3's rotary scaling, which these ``factors`` of each frequency come from."""
    scale = max(factors)
    if not (1 <= scale <= _MOST and 1 <= theta <= _MOST):
        raise SourceError(f"`{header.path}` has rotary factors that are none (`rope_freqs.weight`)")
    lengths = [2 * math.pi * theta ** (2 * pair / size) for pair in range(size // 2)]
    for context in _CONTEXTS:
        wanted = [_banded(context / length, scale) for length in lengths]
        if len(factors) == len(wanted) and all(map(_is_near, factors, wanted)):
            return {
                "rope_type": "llama3",
                "factor": _decimal(scale),
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": context,
            }
    raise SourceError(
        f"`{header.path}` has rotary factors of its own (`rope_freqs.weight`) that are not "
        f"Llama 3's",
        hint="give the folder of the original, with its safetensors",
    )


def _banded(turns: float, scale: float) -> float:
    """By how much a frequency is slowed down that turns so often in the first context."""
    smooth = min(max((turns - _LOW) / (_HIGH - _LOW), 0.0), 1.0)
    return 1 / ((1 - smooth) / scale + smooth)


def _is_near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4)

"""What the small JSON files of a checkpoint may say: kinds and bounds of every key that some tool
reads.

The bounds are wide: the whole Phi family and the largest models of the field lie far inside. They
keep out what no model has (no heads, a billion layers, a context of -1, text for a number), and
what would reach a terminal raw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files


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
KNOWN = ("phi", "phi3", "phimoe", "phi3_v", "phi4mm", "llama")
NEEDED = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)
MAX_NUMBER, MAX_TEXT, MAX_ENTRIES, MAX_BYTES = 10**18, 2**16, 2**17, 2**22
_SYNONYMS = {"su": "longrope", "yarn": "longrope"}  # as Phi-3 called it first
_HINT = "correct it there, or take the file again from where the model comes from"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_CLASS = re.compile(r"([\w.\-]+/[\w.\-]+--)?\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def read(path: Path) -> dict[str, Any]:
    """The settings in ``path``, a ``config.json`` or one like it, within all bounds.

    Raises:
        SourceError: names the file and the key.
    """
    settings = json_files.read_object(path, MAX_BYTES)
    _check_all(path, settings, "")
    return settings


def check_model(path: Path, config: Mapping[str, Any]) -> None:
    """Check that what ``config``, the content of ``path``, says of a model's shape is one.

    Raises:
        SourceError: names the key.
    """
    _check_names(path, config)
    for key in (
        *NEEDED,
        "intermediate_size" if "ff_intermediate_size" not in config else "ff_intermediate_size",
    ):
        if key not in config:
            raise SourceError(f"`{path}` does not say '{key}'")
        if config[key] is None:
            _odd(path, key, "is null")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if config.get("head_dim") is None and config["hidden_size"] % heads:
        _odd(
            path,
            "hidden_size",
            f"({config['hidden_size']}) is no multiple of `num_attention_heads` ({heads})",
        )
    act = config.get("hidden_act")
    if act is not None and act not in ACTIVATIONS and config["model_type"] in KNOWN:
        _odd(
            path,
            "hidden_act",
            f"(`{json_files.shown(act)}`) is no activation that transformers has",
        )
    padding = config.get("pad_token_id")
    if (
        type(padding) is int and padding >= config["vocab_size"]
    ):  # transformers' embedding asserts it
        _odd(
            path,
            "pad_token_id",
            f"is {padding}, and the model's tokens end at {config['vocab_size'] - 1}",
        )
    if kv_heads is not None and heads % kv_heads:
        _odd(
            path,
            "num_attention_heads",
            f"({heads}) is no multiple of `num_key_value_heads` ({kv_heads})",
        )
    types = config.get("layer_types")
    if types is not None and (
        not isinstance(types, list)
        or len(types) != config["num_hidden_layers"]
        or not all(isinstance(kind, str) and _NAME.fullmatch(kind) for kind in types)
    ):
        _odd(
            path,
            "layer_types",
            f"does not name a type for each of {config['num_hidden_layers']} layers",
        )
    _check_rope(path, config)


def _check_names(path: Path, config: Mapping[str, Any]) -> None:
    """The names by which tools choose a model's class."""
    named = config.get("architectures")
    if named is not None and (
        not isinstance(named, list)
        or not named
        or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in named)
    ):
        _odd(path, "architectures", "is no list of names of classes")
    if "model_type" not in config:
        raise SourceError(f"`{path}` does not say 'model_type'")
    if not isinstance(config["model_type"], str) or not _NAME.fullmatch(config["model_type"]):
        _odd(path, "model_type", "is no name")


def _check_rope(path: Path, config: Mapping[str, Any]) -> None:
    """Each is said once, and LongRoPE's lists have a factor for each pair of rotary dimensions."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if config["model_type"] in KNOWN:
            _check_agreement(path, config, key, rope)
        for name in ("rope_type", "type"):
            kind = rope.get(name)
            if kind is not None and (not isinstance(kind, str) or not _NAME.fullmatch(kind)):
                _odd(path, f"{key}.{name}", "is no name")
        share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        pairs = int(size * share) // 2
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            if factors is None:
                continue
            if not isinstance(factors, list) or len(factors) != pairs:
                told = len(factors) if isinstance(factors, list) else "no"
                _odd(
                    path,
                    f"{key}.{name}",
                    f"has {told} factors; heads of {size} have {pairs} rotary pairs",
                )


def _check_agreement(
    path: Path, config: Mapping[str, Any], key: str, rope: Mapping[str, Any]
) -> None:
    """Of two spellings of a setting some tools read the one, some the other."""
    kinds = {
        _SYNONYMS.get(kind, kind)
        for kind in (rope.get("type"), rope.get("rope_type"))
        if isinstance(kind, str)
    }
    if len(kinds) > 1:
        told = " and ".join(f"`{json_files.shown(kind)}`" for kind in sorted(kinds))
        _odd(path, key, f"is of two types, {told} (`type`, `rope_type`)")
    # What stands in `rope_parameters` wins, and is handed on; in `rope_scaling` only transformers 5
    # finds it.
    for name in ("rope_theta", "partial_rotary_factor") if key == "rope_scaling" else ():
        one, other = config.get(name), rope.get(name)
        if one is not None and other is not None and one != other:
            _odd(path, f"{key}.{name}", f"is {other}, and `{name}` beside it is {one}")
    for name, inner in rope.items():
        if isinstance(inner, dict):
            _odd(
                path,
                f"{key}.{name}",
                "is a table: no Phi or Llama has rotary settings of its own in some layers",
            )


def _check_all(path: Path, value: Any, where: str) -> None:
    """Every leaf below ``where``, a dotted path."""
    if isinstance(value, dict):
        _check_size(path, value, where)
        for key, inner in value.items():
            if not key.isprintable() or len(key) > MAX_TEXT:
                raise SourceError(f"`{path}` has a key that is no name: `{json_files.shown(key)}`")
            at = f"{where}.{key}" if where else key
            _check_key(path, at, key, inner)
            _check_all(path, inner, at)
    elif isinstance(value, list):
        _check_size(path, value, where)
        for inner in value:
            _check_all(path, inner, where)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or _CONTROL.search(value):
            _odd(path, where, f"is no text for people or tools: `{json_files.shown(value)}`")
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > MAX_NUMBER:
        _odd(path, where, "is too large a number")


def _check_size(path: Path, value: dict[str, Any] | list[Any], where: str) -> None:
    if len(value) > MAX_ENTRIES:
        _odd(path, where, f"has {len(value)} entries")


def _check_key(path: Path, at: str, key: str, value: Any) -> None:
    """One key by its name, wherever it stands."""
    if value is None:
        return
    if key in FLAGS and not isinstance(value, bool):
        _odd(path, at, "is neither true nor false")
    if key in TEXTS and (
        not isinstance(value, str) or not value.isprintable() or len(value) > 1000
    ):
        _odd(path, at, "is no short text")
    if key in CHOICES and (not isinstance(value, str) or value not in CHOICES[key]):
        _odd(path, at, f"is none of {', '.join(sorted(CHOICES[key])[:5])} …")
    if key == "auto_map":
        _check_auto_map(path, at, value)
    if key in TABLES and not isinstance(value, dict):
        _odd(path, at, "is no table of settings")
    bound = NUMBERS.get(key)
    if bound is None:
        return
    if value == []:
        _odd(path, at, "is an empty list")
    for number in value if bound.many and isinstance(value, list) else [value]:
        kinds = (int,) if bound.whole else (int, float)
        if isinstance(number, bool) or not isinstance(number, kinds):
            _odd(path, at, "is no whole number" if bound.whole else "is no number")
        if not bound.low <= number <= bound.high:
            _odd(path, at, f"is {number}; between {bound.low:g} and {bound.high:g} makes sense")


def _check_auto_map(path: Path, at: str, value: Any) -> None:
    """Classes in modules, by name: "module.Class", or "owner/name--module.Class"; a tokenizer has
    two."""
    for named in value.values() if isinstance(value, dict) else [value]:
        for name in named if isinstance(named, list) else [named]:
            if name is not None and (not isinstance(name, str) or not _CLASS.fullmatch(name)):
                _odd(path, at, "names no class in a module")


def _odd(path: Path, where: str, what: str) -> NoReturn:
    raise SourceError(f"`{path}` is malformed: `{json_files.shown(where)}` {what}", hint=_HINT)

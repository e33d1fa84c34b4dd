"""Whether the small JSON files of a checkpoint say what a model can have: ``config_bounds``, sizes
that fit each other, and nothing that would reach a terminal raw."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import rotary
from phipipe.models.config_bounds import ACTIVATIONS, CHOICES, FLAGS, NUMBERS, TABLES, TEXTS, Bound
from phipipe.steps import Json

_NEIGHBOURS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text")
KNOWN = ("phi", "phi3", "phimoe", "phi3_v", "phi4mm", *_NEIGHBOURS)
NEEDED = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)
MAX_NUMBER, MAX_TEXT, MAX_ENTRIES, MAX_BYTES = 10**18, 2**16, 2**17, 2**22
_SYNONYMS = {"su": "longrope", "yarn": "longrope"}  # as Phi-3 called it first
_PHI_KINDS = ("default", "longrope")
_HINT = "correct it there, or take the file again from where the model comes from"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_CLASS = re.compile(r"([\w.\-]+/[\w.\-]+--)?\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def read(path: Path) -> dict[str, Json]:
    """The settings in ``path``, a ``config.json`` or one like it, within all bounds.

    Raises:
        SourceError: names the file and the key.
    """
    settings = json_files.read_object(path, MAX_BYTES)
    _check_all(path, settings, "")
    return settings


def check(path: Path, config: Mapping[str, Json]) -> None:
    """Check what ``config``, made of the settings of ``path``, says of a model, within all bounds.

    Raises:
        SourceError: names the key.
    """
    _check_all(path, dict(config), "")
    check_model(path, config)


def check_model(path: Path, config: Mapping[str, Json]) -> None:
    """Check that what ``config``, the content of ``path``, says of a model's shape is one.

    Raises:
        SourceError: names the key.
    """
    _check_names(path, config)
    inner = "ff_intermediate_size" if "ff_intermediate_size" in config else "intermediate_size"
    for key in (*NEEDED, inner):
        if key not in config:
            raise SourceError(f"`{path}` does not say '{key}'")
        if config[key] is None:
            _odd(path, key, "is null")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if config.get("head_dim") is None and width % heads:
        _odd(path, "hidden_size", f"({width}) is no multiple of `num_attention_heads` ({heads})")
    _check_activation(path, config)
    _check_padding(path, config)
    kv_heads = config.get("num_key_value_heads")
    if kv_heads is not None and heads % kv_heads:
        what = f"({heads}) is no multiple of `num_key_value_heads` ({kv_heads})"
        _odd(path, "num_attention_heads", what)
    _check_layer_types(path, config)
    _check_rope(path, config)


def _check_activation(path: Path, config: Mapping[str, Json]) -> None:
    name = config.get("hidden_act")
    if name is not None and name not in ACTIVATIONS and config["model_type"] in KNOWN:
        what = f"(`{json_files.shown(name)}`) is no activation that transformers has"
        _odd(path, "hidden_act", what)


def _check_padding(path: Path, config: Mapping[str, Json]) -> None:
    padding, last = config.get("pad_token_id"), config["vocab_size"] - 1
    if type(padding) is int and padding > last:  # transformers' embedding asserts it
        _odd(path, "pad_token_id", f"is {padding}, and the model's tokens end at {last}")


def _check_layer_types(path: Path, config: Mapping[str, Json]) -> None:
    types, layers = config.get("layer_types"), config["num_hidden_layers"]
    if types is None:
        return
    named = isinstance(types, list) and all(_is_name(kind) for kind in types)
    if not named or len(types) != layers:
        _odd(path, "layer_types", f"does not name a type for each of {layers} layers")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _check_names(path: Path, config: Mapping[str, Json]) -> None:
    """The names by which tools choose a model's class."""
    named = config.get("architectures")
    listed = isinstance(named, list) and named and all(_is_name(name) for name in named)
    if named is not None and not listed:
        _odd(path, "architectures", "is no list of names of classes")
    if "model_type" not in config:
        raise SourceError(f"`{path}` does not say 'model_type'")
    if not _is_name(config["model_type"]):
        _odd(path, "model_type", "is no name")


def _check_rope(path: Path, config: Mapping[str, Json]) -> None:
    """Each is said once, and LongRoPE's lists have a factor for each pair of rotary dimensions."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if config["model_type"] in KNOWN:
            _check_agreement(path, config, key, rope)
        for name in ("rope_type", "type"):
            kind = rope.get(name)
            if kind is not None and not _is_name(kind):
                _odd(path, f"{key}.{name}", "is no name")
        _check_factors(path, config, key, rope)
    foreign = config["model_type"] in rotary.PHI_TYPES and rotary.kind(config) not in _PHI_KINDS
    if config["model_type"] in KNOWN and not foreign:  # a rule refuses those of Phi's
        problem = rotary.problem(config)
        if problem is not None:
            _odd(path, *problem)


def _check_factors(
    path: Path, config: Mapping[str, Json], key: str, rope: Mapping[str, Json]
) -> None:
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    pairs = int(size * share) // 2
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if factors is not None and (not isinstance(factors, list) or len(factors) != pairs):
            count = len(factors) if isinstance(factors, list) else "no"
            what = f"has {count} factors; heads of {size} have {pairs} rotary pairs"
            _odd(path, f"{key}.{name}", what)


def _check_agreement(
    path: Path, config: Mapping[str, Json], key: str, rope: Mapping[str, Json]
) -> None:
    """Of two spellings of a setting some tools read the one, some the other."""
    kinds = {
        _SYNONYMS.get(kind, kind)
        for kind in (rope.get("type"), rope.get("rope_type"))
        if isinstance(kind, str)
    }
    if len(kinds) > 1:
        both = " and ".join(f"`{json_files.shown(kind)}`" for kind in sorted(kinds))
        _odd(path, key, f"is of two types, {both} (`type`, `rope_type`)")
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


def _check_all(path: Path, value: Json, where: str) -> None:
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


def _check_size(path: Path, value: dict[str, Json] | list[Json], where: str) -> None:
    if len(value) > MAX_ENTRIES:
        _odd(path, where, f"has {len(value)} entries")


def _check_key(path: Path, at: str, key: str, value: Json) -> None:
    """One key by its name, wherever it stands."""
    if value is None:
        return
    if key in FLAGS and not isinstance(value, bool):
        _odd(path, at, "is neither true nor false")
    if key in TEXTS and not (isinstance(value, str) and value.isprintable() and len(value) <= 1000):
        _odd(path, at, "is no short text")
    if key in CHOICES and (not isinstance(value, str) or value not in CHOICES[key]):
        _odd(path, at, f"is none of {', '.join(sorted(CHOICES[key])[:5])} …")
    if key == "auto_map":
        _check_auto_map(path, at, value)
    if key in TABLES and not isinstance(value, dict):
        _odd(path, at, "is no table of settings")
    if bound := NUMBERS.get(key):
        _check_number(path, at, value, bound)


def _check_number(path: Path, at: str, value: Json, bound: Bound) -> None:
    if value == []:
        _odd(path, at, "is an empty list")
    kinds = (int,) if bound.whole else (int, float)
    for number in value if bound.many and isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, kinds):
            _odd(path, at, "is no whole number" if bound.whole else "is no number")
        if not bound.low <= number <= bound.high:
            _odd(path, at, f"is {number}; between {bound.low:g} and {bound.high:g} makes sense")


def _check_auto_map(path: Path, at: str, value: Json) -> None:
    """Classes in modules, by name: "module.Class", or "owner/name--module.Class"; a tokenizer has
    two."""
    for named in value.values() if isinstance(value, dict) else [value]:
        for name in named if isinstance(named, list) else [named]:
            if name is not None and (not isinstance(name, str) or not _CLASS.fullmatch(name)):
                _odd(path, at, "names no class in a module")


def _odd(path: Path, where: str, what: str) -> NoReturn:
    raise SourceError(f"`{path}` is malformed: `{json_files.shown(where)}` {what}", hint=_HINT)

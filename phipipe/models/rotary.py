"""Rotary position scaling as a config asks for it: ``rope_scaling`` or ``rope_parameters``,
``type`` or ``rope_type``.

Tools fill in what a config leaves out, each with values of its own, and skip what they do not know.
So a config must say all that its kind needs, and nothing that none knows. The kinds and their keys
are transformers' (``modeling_rope_utils``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phipipe.models import longrope
from phipipe.steps import Json

ORIGINAL = "original_max_position_embeddings"
# kind → keys without which tools would guess
NEEDED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "longrope": ("short_factor", "long_factor"),
}
# kind → keys that change it from what it usually is; each is a feature that a runtime has or not
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "factor", "short_mscale", "long_mscale"),
}
_SHARED = ("rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL, "finetuned")
_KNOWN = {
    *_SHARED,
    *(key for table in (NEEDED, OPTIONAL) for keys in table.values() for key in keys),
}
# transformers' own: what these keys are worth where they are left out
_USUAL: Mapping[str, Json] = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_POSITIVE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor")
# Features of scalings that do not change with the length of a text.
ELSEWHERE = "longrope beside Phi"  # LongRoPE in a model that converters do not expect it in
STATIC = frozenset(
    {ELSEWHERE, *NEEDED, *(f"{kind}.{key}" for kind, keys in OPTIONAL.items() for key in keys)}
    - {"dynamic", "longrope.short_mscale", "longrope.long_mscale"}
)
PHI_TYPES = longrope.PHI_TYPES


def settings(config: Mapping[str, Json]) -> Mapping[str, Json]:
    """The table of rotary settings that counts; empty where there is none."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope if isinstance(rope, dict) else {}


def kind(config: Mapping[str, Json]) -> str:
    """The kind of scaling in transformers' present word for it; "default" is none. Phi-3 first
    called LongRoPE "su" and "yarn"."""
    rope = settings(config)
    named = str(rope.get("rope_type") or rope.get("type") or "default")
    if config.get("model_type") in PHI_TYPES and longrope.spelled(rope) is not None:
        return "longrope"
    return named


def features(config: Mapping[str, Json]) -> tuple[str, ...]:
    """What a runtime must have to compute ``config``'s positions: the kind, and those of its keys
    that change it. Nothing for plain positions."""
    named, rope = kind(config), settings(config)
    if named == "default":
        return ()
    is_phi = config.get("model_type") in PHI_TYPES
    whole = ELSEWHERE if named == "longrope" and not is_phi else named
    return (whole, *(f"{named}.{key}" for key in _unusual(config, named, rope)))


def _unusual(config: Mapping[str, Json], named: str, rope: Mapping[str, Json]) -> Iterator[str]:
    for key in OPTIONAL.get(named, ()):
        value = rope.get(key)
        if value is None or value == _USUAL.get(key):
            continue
        if key.endswith("_mscale") and config.get("model_type") == "phimoe":
            continue  # part of its kind
        if named == "longrope" and key == "factor" and value == _stretch(config, rope):
            continue  # transformers 5 notes what follows from the lengths
        yield key


def _stretch(config: Mapping[str, Json], rope: Mapping[str, Json]) -> float:
    original = config.get(ORIGINAL) or rope.get(ORIGINAL) or config["max_position_embeddings"]
    return float(config["max_position_embeddings"]) / float(original)


def problem(config: Mapping[str, Json]) -> tuple[str, str] | None:
    """(key, a phrase to follow it) of the first thing in the rotary settings that tools would read
    in different ways; None if they are sound. Numbers are within ``config_bounds`` already."""
    named, rope = kind(config), settings(config)
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    for key in NEEDED.get(named, ()):
        if rope.get(key) is None and not (key == ORIGINAL and config.get(ORIGINAL)):
            return f"{where}.{key}", f"is not said, and scaling of type `{named}` needs it"
    one, other = config.get(ORIGINAL), rope.get(ORIGINAL)
    if one is not None and other is not None and one != other:
        return f"{where}.{ORIGINAL}", f"is {other}, and `{ORIGINAL}` beside it is {one}"
    odd = _odd_number(named, rope)
    if odd is not None:
        return f"{where}.{odd[0]}", odd[1]
    if named in NEEDED:
        for key, value in rope.items():
            if key not in _KNOWN and value is not None:
                return f"{where}.{key}", "is a rotary setting that no tool here knows"
    return None


def _odd_number(named: str, rope: Mapping[str, Json]) -> tuple[str, str] | None:
    if named not in NEEDED:
        return None
    if named != "longrope" and rope["factor"] < 1:
        return "factor", f"is {rope['factor']}; scaling makes contexts longer, not shorter"
    for key in _POSITIVE:
        if rope.get(key) is not None and rope[key] <= 0:
            return key, f"is {rope[key]}, and must be more than 0"
    if named == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        return "high_freq_factor", "is not more than `low_freq_factor`"
    if named != "yarn":
        return None
    fast, slow = (rope.get(key) or _USUAL[key] for key in ("beta_fast", "beta_slow"))
    if fast <= slow:
        return "beta_fast", f"({fast}) is not more than `beta_slow` ({slow})"
    if (rope.get("mscale") is None) != (rope.get("mscale_all_dim") is None):
        return "mscale", "and `mscale_all_dim` only count together, and one of them is missing"
    return None


def respelled(config: Mapping[str, Json]) -> dict[str, Json] | None:
    """``rope_scaling`` in the spelling of the hub's originals, which every converter reads; None
    for plain positions."""
    named, rope = kind(config), settings(config)
    if named == "default":
        return None
    if named == "longrope":
        unusual = {key: rope[key] for key in _unusual(config, named, rope)}
        return {**(longrope.spelled({**rope, "rope_type": "longrope"}) or {}), **unusual}
    keys = (*NEEDED.get(named, ()), *OPTIONAL.get(named, ()))
    told = {key: rope[key] for key in keys if rope.get(key) is not None}
    if ORIGINAL in keys and ORIGINAL not in told:
        told[ORIGINAL] = config[ORIGINAL]
    return {"type": named, "rope_type": named, **told}

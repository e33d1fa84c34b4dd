"""Rotary frequencies of a config, chosen once for graphs of a fixed context. Light: plain Python.

The formulas are those of transformers' ``modeling_rope_utils``, which follow the papers of YaRN
(Peng et al. 2023) and LongRoPE (Ding et al. 2024) and Meta's code of Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phipipe.errors import StepFailed
from phipipe.models import longrope
from phipipe.steps import Json

Scaled = tuple[list[float], float]  # frequencies, and what cosines and sines are multiplied by


@dataclass(frozen=True, kw_only=True)
class _Rotary:
    """What a config says of rotation: ``settings`` is its dictionary, ``plain`` are the frequencies
    before scaling, radians per token."""

    settings: Mapping[str, Json]
    plain: list[float]
    base: float
    longest: int
    original: int
    context: int


def frequencies(config: Mapping[str, Json], head_size: int, context: int) -> Scaled:
    """One frequency for each pair of a head's rotated numbers, and the attention factor.

    LongRoPE's factors are chosen once, by ``context`` in tokens.

    Raises:
        StepFailed: the config asks for a scaling that is not known.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    share = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    base = settings.get("rope_theta") or config.get("rope_theta") or 10000.0
    rotated, longest = int(head_size * share), config.get("max_position_embeddings", context)
    key = "original_max_position_embeddings"
    given = _Rotary(
        settings=settings,
        plain=[base ** -(i / rotated) for i in range(0, rotated, 2)],
        base=base,
        longest=longest,
        original=config.get(key) or settings.get(key) or longest,
        context=context,
    )
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if longrope.spelled(settings):  # by any of its names
        kind = "longrope"
    if kind not in SCALINGS:
        raise StepFailed(f"static graphs know no rotary scaling `{kind}`")
    return SCALINGS[kind](given)


def _default(given: _Rotary) -> Scaled:
    return given.plain, 1.0


def _linear(given: _Rotary) -> Scaled:
    return [one / given.settings["factor"] for one in given.plain], 1.0


def _longrope(given: _Rotary) -> Scaled:
    """The attention factor is sqrt(1 + ln(scale) / ln(original context))."""
    chosen = given.settings["long_factor" if given.context > given.original else "short_factor"]
    scale = given.longest / given.original
    factor = math.sqrt(1 + math.log(scale) / math.log(given.original)) if scale > 1 else 1.0
    return [one / by for one, by in zip(given.plain, chosen, strict=True)], factor


def _llama3(given: _Rotary) -> Scaled:
    """Waves longer than the original context / ``low_freq_factor`` are slowed down by ``factor``,
    those shorter than it / ``high_freq_factor`` are kept, and between the two a part of each."""
    settings = given.settings
    low, high, factor = (settings[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    scaled = []
    for one in given.plain:
        turns = settings["original_max_position_embeddings"] * one / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        scaled.append((1 - kept) * one / factor + kept * one)
    return scaled, 1.0


def _yarn(given: _Rotary) -> Scaled:
    """Frequencies that turn often in the original context are kept, slow ones divided by
    ``factor``, with a ramp between them; the attention factor is 0.1 ln(factor) + 1."""
    settings, count = given.settings, 2 * len(given.plain)
    factor = settings.get("factor") or given.longest / given.original

    def place(turns: float) -> float:
        return count * math.log(given.original / (turns * 2 * math.pi)) / (2 * math.log(given.base))

    low, high = place(settings.get("beta_fast") or 32), place(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, count - 1)
    high = high + 0.001 if low == high else high
    scaled = []
    for i, one in enumerate(given.plain):
        slowed = min(1.0, max(0.0, (i - low) / (high - low)))
        scaled.append(slowed * one / factor + (1 - slowed) * one)
    return scaled, _yarn_attention(settings, factor)


def _yarn_attention(settings: Mapping[str, Json], factor: float) -> float:
    def sharper(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, ways = settings.get("attention_factor"), ("mscale", "mscale_all_dim")
    if given is not None:
        return float(given)
    if all(settings.get(key) for key in ways):
        return sharper(settings["mscale"]) / sharper(settings["mscale_all_dim"])
    return sharper(1.0)


SCALINGS: Mapping[str, Callable[[_Rotary], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}

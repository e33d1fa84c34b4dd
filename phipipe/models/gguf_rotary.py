"""How the model in a GGUF turns queries and keys, in the words of a ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import gguf_files
from phipipe.models.gguf_files import Header
from phipipe.models.gguf_settings import Said, decimal
from phipipe.steps import Json

# Bands of Llama 3's rotary scaling (Meta's own code): factor of low and of high frequencies; and
# contexts that a model may have been trained on first, Llama's before others.
_LOW, _HIGH = 1.0, 4.0
_MOST = 1e12
_CONTEXTS = (8192, *(2**power for power in range(8, 18) if power != 13))


def of(said: Said, config: Mapping[str, Json]) -> dict[str, Json]:
    """The keys of a ``config.json`` on rotation; ``config`` has the others.

    Raises:
        SourceError: no config says such a rotation.
    """
    header, size = said.header, int(config["head_dim"])
    turned = said.whole("rope.dimension_count", size)
    found: dict[str, Json] = {}
    if turned != size:
        found["partial_rotary_factor"] = turned / size
    # llama.cpp takes a factor without a type for that of linear scaling, and 0 for 1
    kind = said.find("rope.scaling.type") or "linear"
    factor = said.number("rope.scaling.factor", 1.0) or 1.0
    context = int(config["max_position_embeddings"])
    original = said.whole("rope.scaling.original_context_length", context)
    if f := gguf_files.floats(header, "rope_factors_long.weight"):
        _check_alone(said, kind, factor)
        short = gguf_files.floats(header, "rope_factors_short.weight")
        _check_attention(said, context, original)
        return found | {
            "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": f},
            "original_max_position_embeddings": original,
        }
    _check_attention(said, 0, 0)
    if f := gguf_files.floats(header, "rope_freqs.weight"):
        _check_alone(said, kind, factor)
        return found | {"rope_scaling": _bands(header, f, float(config["rope_theta"]), size)}
    if kind == "none" or (kind == "linear" and factor == 1):
        return found | {"rope_scaling": None}
    if kind not in ("linear", "yarn"):
        shown = json_files.shown(str(kind))
        raise SourceError(f"`{header.path}` has the rotary scaling `{shown}`, which is not read")
    scaling: dict[str, Json] = {"rope_type": kind, "factor": decimal(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
    return found | {"rope_scaling": scaling}


def _check_alone(said: Said, kind: Json, factor: float) -> None:
    """Rotary factors of each frequency, and another scaling besides: llama.cpp does both."""
    if factor != 1 and kind != "none":
        raise SourceError(
            f"`{said.header.path}` has rotary factors of each frequency, and "
            f"`rope.scaling.factor` {factor:g} besides"
        )


def _check_attention(said: Said, context: int, original: int) -> None:
    """LongRoPE scales attention by what follows from its two contexts, others by nothing; no config
    says another number (Ding et al. 2024, arXiv:2402.13753)."""
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
                "factor": decimal(scale),
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

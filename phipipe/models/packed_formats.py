"""The formats that quantized weights are read from, by the names that configs have for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from phipipe.models import packed_scales, packed_words
from phipipe.models.packed import Packed, Pieces
from phipipe.steps import Json

Settings = Mapping[str, Json]
_READERS: Mapping[str, Callable[[Pieces, Settings, str], Packed | None]] = {
    "gptq": packed_words.gptq,
    "awq": packed_words.awq,
    "compressed-tensors": packed_scales.compressed,
    "fp8": packed_scales.fp8,
    "bitsandbytes": packed_scales.bnb,
    "mlx": packed_words.mlx,
}
_PROBLEMS: Mapping[str, Callable[[Settings], str]] = {
    "gptq": packed_words.gptq_problem,
    "awq": packed_words.awq_problem,
    "compressed-tensors": packed_scales.compressed_problem,
    "fp8": packed_scales.fp8_problem,
    "bitsandbytes": packed_scales.bnb_problem,
    "mlx": packed_words.mlx_problem,
}


def problem(kind: str, settings: Settings) -> str:
    """Why weights of the format cannot be read, to follow "and"; "" if they can."""
    check = _PROBLEMS.get(kind)
    if check is None:
        return (
            "phipipe reads GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes and MLX alone; "
            "quantizing it again would lose more than the figures could tell"
        )
    return check(settings)


def read(kind: str, pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """The weight that lies there in pieces; None if it is stored plainly, or not at all.

    Raises:
        SourceError: see ``Pieces.take``.
    """
    return _READERS[kind](pieces, settings, dtype)


def rounds_more(kind: str, settings: Settings) -> bool:
    """Whether the format's own runtimes round what passes through the model, too."""
    if kind == "bitsandbytes":
        return settings.get("load_in_8bit") is True
    if kind == "compressed-tensors":
        groups = packed_scales.config_groups(settings)
        return any(group.get("input_activations") for group in groups)
    return kind == "fp8"

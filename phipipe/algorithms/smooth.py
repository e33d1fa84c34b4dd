"""``weights: {smooth: awq}``: a checkpoint that rounds better in any format, as a step before the
backend's own.

The backend reads this checkpoint wherever it would read ``source``; the baseline, and with it every
figure, stays the original's. Scales are powers of two (``awq``), so the model computes the very
same: in fp32 its logits differ by the order of additions at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from phipipe.models import layerwise_memory
from phipipe.steps import Json, Step, reading

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

NAME, TOOLCHAIN = "smooth", "torch"
WORDS = "AWQ-smoothed"
GROUP = 32  # in which weights are rounded while scales are chosen: what most formats have
SAMPLE = 256  # tokens whose outputs scales are judged by
ROWS = 512  # of each linear, evenly spread: rows are rounded apart, so some stand for all
_SEARCH_BYTES = 40  # for each weight that is looked at while scales are chosen
# Whose norms multiply by 1 + weight: what is stored is scaled by no power of two.
_ONE_MORE = frozenset({"gemma3_text"})


def asked(recipe: Recipe) -> bool:
    """Whether the recipe has a checkpoint smoothed."""
    return recipe.weights.smooth == "awq"


def of(checkpoint: Checkpoint) -> Checkpoint:
    """The shape of what the step makes of ``checkpoint``; bytes are an estimate."""
    if not _widens(checkpoint):
        return checkpoint
    config = {**checkpoint.config, dtype_key(checkpoint.config): "float32"}
    return replace(checkpoint, config=config, weight_bytes=4 * checkpoint.parameters)


def step(checkpoint: Checkpoint, recipe: Recipe, *, by_rows: bool) -> Step:
    """``smooth``: the output of ``source`` with AWQ's scales folded in. ``by_rows``: weights will
    be rounded with one scale for each row, which needs other scales than groups do."""
    tokens = min(recipe.calibrate.tokens, layerwise_memory.TOGETHER)
    return Step(
        name=NAME,
        runs="algorithms/smooth",
        version=1,
        needs={"source": "source", "calibration": "calibration"},
        params={"group": 0 if by_rows else GROUP, "widen": _widens(checkpoint)},
        layers="source",
        toolchain=TOOLCHAIN,
        output_bytes=of(checkpoint).weight_bytes,
        memory_bytes=layerwise_memory.memory_bytes(checkpoint, tokens, recipe.calibrate.window)
        + _SEARCH_BYTES * 4 * ROWS * checkpoint.intermediate_size,
    )


def before(steps: Sequence[Step], smoothing: Step) -> list[Step]:
    """``smoothing``, then ``steps``, which read its output in place of the checkpoint."""
    return [smoothing, *(reading(one, "source", NAME) for one in steps)]


def dtype_key(config: Mapping[str, Json]) -> str:
    """Where a ``config.json`` says how weights are stored: transformers 5 writes `dtype`."""
    return "dtype" if "dtype" in config else "torch_dtype"


def _widens(checkpoint: Checkpoint) -> bool:
    """Whether the scaled weights are stored in fp32: fp16 has too few exponents for them."""
    stored = checkpoint.config.get(dtype_key(checkpoint.config))
    return stored == "float16" or checkpoint.model_type in _ONE_MORE

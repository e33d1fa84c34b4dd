"""Rules about what is learned of the weights before a backend stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from phipipe import words
from phipipe.algorithms import folds, smooth
from phipipe.backends import widths
from phipipe.backends.rules import Rule
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.backends.base import Options
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

RULES: tuple[Rule, ...] = (
    Rule(
        id="A01",
        level="error",
        when=lambda r, o, c: smooth.asked(r) and c.model_type not in folds.TYPES,
        message="`weights.smooth: awq` has no place for its scales in `{checkpoint.architecture}`",
        hint="take `weights.smooth` out; types of model that have: {types}",
        words=lambda r, o, c: {"types": ", ".join(folds.TYPES)},
    ),
    Rule(
        id="A02",
        level="error",
        when=lambda r, o, c: smooth.asked(r) and r.precision in ("fp16", "fp32"),
        message="`weights.smooth: awq` prepares weights for being rounded to integers, and "
        "`precision: {recipe.precision}` rounds none",
        hint="take `weights.smooth` out of this build, or set `precision: int4`",
    ),
    Rule(
        id="A03",
        level="error",
        when=lambda r, o, c: smooth.asked(r) and bool(getattr(o, "rotate", None)),
        message="`weights.smooth: awq` and `quantize.rotate` both move what stands out, and the "
        "rotation mixes what was scaled apart",
        hint="keep one of them",
    ),
    Rule(
        id="A04",
        level="warning",
        when=lambda r, o, c: r.weights.learn == "signround" and c.large and _has_four(o, c),
        message="`weights.learn: signround` takes hours on a CPU, and about {memory} of memory: "
        "the whole model in fp32",
        hint="nothing is wrong; `learn: gptq` has one layer at a time in memory, and fewer "
        "`weights.iterations` take less time",
        words=lambda r, o, c: {"memory": words.size(4 * c.parameters)},
    ),
    Rule(
        id="A05",
        level="warning",
        when=lambda r, o, c: r.weights.learn == "signround" and not _has_four(o, c),
        message="`weights.learn: signround` learns matrices of the layers at 4 bits, and the map "
        "has none: all are rounded as `search` does, and the scheme says so",
        hint="set `weights.learn: search` or `gptq`, or leave layers at 4 bits in `quantize.map`",
    ),
)


def _has_four(options: Options, checkpoint: Checkpoint) -> bool:
    """Whether learned weights of a layer are at 4 bits, as all are that the map does not name."""
    chosen = widths.fitting(getattr(options, "map", {}), checkpoint)
    inner = [name for name in linears.shapes(checkpoint) if linears.layer_of(name) is not None]
    found = [chosen.get(name) for name in inner]
    return not found or any(one is None or getattr(one, "bits", 4) == 4 for one in found)


def rounds_again(name: str, rounds: Callable[[Recipe, Options], str | None]) -> Rule:
    """``name``'s rule: no option has a word about rounding where weights are learned; ``rounds``
    gives one that has."""
    return Rule(
        id=name,
        level="error",
        when=lambda r, o, c: rounds(r, o) is not None,
        message="weights are learned, and `quantize.{option}` would round them otherwise",
        hint="take it out; widths of single matrices stand in `quantize.map`, and the size of "
        "groups in `weights.group_size`",
        words=lambda r, o, c: {"option": rounds(r, o)},
    )

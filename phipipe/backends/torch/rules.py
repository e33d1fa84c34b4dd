"""What is impossible or unwise with PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from phipipe.backends import group_rules, learned_rules, widths
from phipipe.backends.rules import Rule
from phipipe.backends.torch.options import BITS, Options
from phipipe.backends.widths import FLOAT_BITS, Width
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe


def _widest(options: Options) -> int:
    """The most bits of an integer in the map."""
    bits = (one.bits for one in options.map.values() if isinstance(one, Width))
    return max((one for one in bits if one != FLOAT_BITS), default=0)


def _has_odd_head(options: Options, checkpoint: Checkpoint) -> bool:
    """Whether the map has integers for a head of its own that cannot be packed."""
    if not options.map or checkpoint.tied or checkpoint.vocab_size % 32 == 0:
        return False
    head = widths.fitting(options.map, checkpoint).get(linears.HEAD)
    return isinstance(head, Width) and head.bits != FLOAT_BITS


def _rounds(recipe: Recipe, options: Options) -> str | None:
    """The option that has a word about rounding, though weights are learned."""
    usual = {"algorithm": "rtn", "symmetric": True, "iterations": None}
    other = [name for name, value in usual.items() if getattr(options, name) != value]
    named = "group_size" in options.model_fields_set
    other += ["group_size"] if named and options.group_size != recipe.weights.group_size else []
    return other[0] if other and recipe.weights.learn is not None else None


RULES: tuple[Rule, ...] = (
    Rule(
        id="T01",
        level="warning",
        when=lambda r, o, c: r.precision not in BITS and bool(o.model_fields_set),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="T02",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS and o.algorithm == "rtn" and o.iterations is not None
        ),
        message="`quantize.iterations` is set, but `rtn` learns nothing",
        hint="remove it, or set `quantize.algorithm: signround`",
    ),
    Rule(
        id="T04",
        level="error",
        when=lambda r, o, c: r.precision == "int8" and not o.symmetric,
        message="auto-round's format has no zero points at 8 bits",
        hint="remove `quantize.symmetric`, or choose int4",
    ),
    Rule(
        id="T05",
        level="error",
        when=lambda r, o, c: r.precision in BITS and c.model_type == "phimoe",
        message="`torch` quantizes dense models only; `{checkpoint.architecture}` is a mixture "
        "of experts",
        hint="choose fp16 or fp32, or `backend: openvino`",
    ),
    Rule(
        id="T06",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS
            and math.gcd(*c.input_widths.values(), c.kv_heads * c.head_size) % 32 != 0
        ),
        message="auto-round packs weights whose width and height are multiples of 32; this "
        "model has others",
        hint="choose fp16 or fp32",
    ),
    Rule(
        id="T07",
        level="error",
        when=lambda r, o, c: r.precision == "int4" and not o.symmetric and _widest(o) == 8,
        message="auto-round's format has no zero points at 8 bits, which `quantize.map` asks for",
        hint="remove `quantize.symmetric`",
    ),
    Rule(
        id="T08",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS and r.weights.learn is None and _has_odd_head(o, c)
        ),
        message="auto-round packs weights whose height is a multiple of 32; `lm_head` has "
        "{checkpoint.vocab_size} rows",
        hint="take `lm_head` out of `quantize.map`",
    ),
    learned_rules.rounds_again("T09", _rounds),
    group_rules.rule("T03", BITS, (32, 64, 128)),
)

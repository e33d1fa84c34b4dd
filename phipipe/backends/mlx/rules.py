"""What mlx-lm cannot do, or does otherwise than asked without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe.backends.implied import IMPLIED
from phipipe.backends.mlx.options import GROUPS, Options, bits_of, group_of
from phipipe.backends.rules import SOFTMAX_ROUTED, WINDOWLESS, Fixup, Rule
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe


def _rounding(recipe: Recipe, options: Options) -> list[str]:
    """Options set that say how to round weights, which are learned."""
    if recipe.weights.learn is None or recipe.precision != "int4":
        return []
    taken: dict[str, tuple[Json, ...]] = {
        "mode": ("affine",),
        "bits": (None, 4),
        "group_size": (None, recipe.weights.group_size),
        "mixed": ("none",),
    }
    return [name for name, values in taken.items() if getattr(options, name) not in values]


RULES = (
    Rule(
        id="X01",
        level="error",
        when=lambda r, o, c: o.mode == "affine" and o.group_size == 16,
        message="mlx's affine mode has groups of 32, 64 or 128",
        hint="set `quantize.group_size` to one of them",
    ),
    Rule(
        id="X02",
        level="error",
        when=lambda r, o, c: (
            o.mode != "affine" and (o.bits or o.group_size not in (None, GROUPS[o.mode]))
        ),
        message="`{options.mode}` has a width and a group size of its own",
        hint="leave `bits` and `group_size` out",
    ),
    Rule(
        id="X03",
        level="error",
        when=lambda r, o, c: (
            o.mixed != "none" and (o.mode != "affine" or o.bits or r.precision != "int4")
        ),
        message="`{options.mixed}` is an affine int4 scheme with widths of its own; mlx-lm "
        "would ignore it here",
        hint="leave `mode` and `bits` out and set `precision: int4`, or remove `mixed`",
    ),
    Rule(
        id="X07",
        level="error",
        when=lambda r, o, c: (
            not r.precision.startswith("fp") and (bits_of(r, o) == 8) != (r.precision == "int8")
        ),
        message="these options store 8 bits only for int8, fewer only for int4; the recipe says "
        "{recipe.precision}",
        hint="change `precision`, or `quantize.bits` and `quantize.mode`",
    ),
    Rule(
        id="X08",
        level="error",
        when=lambda r, o, c: (
            not r.precision.startswith("fp")
            and r.weights.learn is None  # those have groups of their own
            and not c.is_divided_by(group_of(o))
        ),
        message="the group size does not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size}); mlx-lm would leave those "
        "unquantized without a word",
        hint="set `quantize.group_size: 32`, or `precision: fp16`",
    ),
    Rule(
        id="X15",
        level="error",
        when=lambda r, o, c: bool(_rounding(r, o)),
        message="`quantize.{option}` says how mlx-lm rounds, and `weights.learn` has rounded "
        "already",
        hint="take it out, or `weights.learn`; widths of single matrices are for `quantize.map`",
        words=lambda r, o, c: {"option": _rounding(r, o)[0]},
    ),
    Rule(
        id="X14",
        level="warning",
        when=lambda r, o, c: r.precision.startswith("fp") and bool(o.model_fields_set - {"dtype"}),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="X09",
        level="error",
        when=lambda r, o, c: c.model_type == "qwen2" and c.head_size * c.heads != c.hidden_size,
        message="`head_dim`: mlx-lm takes a Qwen2's heads to be hidden size / heads wide, and "
        "this model's have {checkpoint.head_size} dimensions",
        hint="choose `backend: llamacpp` or `onnxruntime`",
    ),
    *SOFTMAX_ROUTED,
    *WINDOWLESS,
    Rule(
        id="M11",
        level="warning",
        when=lambda r, o, c: c.longrope and r.evaluate.window <= c.original_context_length,
        message="mlx-lm knows one set of LongRoPE factors; the short ones are built in, so use "
        "the model with at "
        "most {checkpoint.original_context_length} tokens",
        hint="for longer prompts alone, set `evaluate.window` beyond that: the long factors are "
        "then built in",
    ),
    Rule(
        id="M16",
        level="warning",
        when=lambda r, o, c: c.longrope and r.evaluate.window > c.original_context_length,
        message="mlx-lm knows one set of LongRoPE factors; since `evaluate.window` asks for "
        "them, the long ones are "
        "built in, so use the model with more than {checkpoint.original_context_length} tokens",
        hint="for shorter prompts, lower `evaluate.window` to that: the short factors are then "
        "built in",
    ),
)


def _with_short_factors(scaling: Mapping[str, Json]) -> dict[str, Json]:
    return {**scaling, "long_factor": scaling["short_factor"]}


FIXUPS = (
    *IMPLIED,
    Fixup(
        id="F2",
        rule="M11",
        when=lambda r, c: (
            c.rope_scaling is not None and r.evaluate.window <= c.original_context_length
        ),
        reason="mlx-lm applies LongRoPE's long factors to every prompt; with the short ones in "
        "their place it is exact "
        "up to the original context length",
        patch=lambda c: {"rope_scaling": _with_short_factors(c.rope_scaling or {})},
    ),
)

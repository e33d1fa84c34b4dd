"""What OpenVINO cannot do, or does otherwise than asked without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends import group_rules
from phipipe.backends.openvino.options import PIPELINE, Options
from phipipe.backends.rules import Rule

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe

ROUNDING = ("ratio", "backup", "all_layers", "awq", "scale_estimation", "gptq", "sensitivity")


def _stray(recipe: Recipe, options: Options) -> list[str]:
    """Options set for a precision that has no use for them."""
    if recipe.precision == "int4":
        return []
    useful = {"symmetric", "map"} if recipe.precision == "int8" else set()
    return sorted(options.model_fields_set - useful)


def _rounding(recipe: Recipe, options: Options) -> list[str]:
    """Options set that say how to round weights, which are learned."""
    if recipe.weights.learn is None or recipe.precision != "int4":
        return []
    usual = type(options)()
    other = [name for name in ROUNDING if getattr(options, name) != getattr(usual, name)]
    sizes = ("group_size",) if options.group_size != recipe.weights.group_size else ()
    return other + [name for name in sizes if name in options.model_fields_set]


RULES: tuple[Rule, ...] = (
    Rule(
        id="V14",
        level="error",
        when=lambda r, o, c: (
            r.precision == "int4" and o.ratio == 1 and "sensitivity" in o.model_fields_set
        ),
        message="`quantize.sensitivity` ranks layers for a `ratio` below 1, and `ratio` is 1",
        hint="remove it, or set `quantize.ratio`",
    ),
    Rule(
        id="V12",
        level="error",
        when=lambda r, o, c: (
            bool(o.model_fields_set.intersection(PIPELINE))
            and o.prompt_length + o.response_length > c.context_length
        ),
        message="`quantize.prompt_length` and `response_length` together are longer than the "
        "model's context "
        "({checkpoint.context_length} tokens)",
        hint="make one of the two shorter",
    ),
    Rule(
        id="M12",
        level="warning",
        when=lambda r, o, c: c.longrope and c.context_length > c.original_context_length,
        message="a chat that grows past {checkpoint.original_context_length} tokens loses "
        "accuracy from there on: "
        "openvino-genai keeps what it computed with the model's other rotary factors",
        hint="prompts that are longer from the start are right",
    ),
    Rule(
        id="V02",
        level="error",
        when=lambda r, o, c: bool(_stray(r, o)),
        message="`quantize.{option}` is set, but {recipe.precision} {takes}",
        hint="remove it, or choose int4",
        words=lambda r, o, c: {
            "option": _stray(r, o)[0],
            "takes": "takes `symmetric` and `map` only"
            if r.precision == "int8"
            else "quantizes nothing",
        },
    ),
    Rule(
        id="V15",
        level="error",
        when=lambda r, o, c: bool(_rounding(r, o)),
        message="`quantize.{option}` says how OpenVINO rounds, and `weights.learn` has rounded "
        "already",
        hint="take it out, or `weights.learn`; widths of single matrices are for `quantize.map`",
        words=lambda r, o, c: {"option": _rounding(r, o)[0]},
    ),
    group_rules.rule("V13", ("int4",), (32, 64, 128, 256)),
)

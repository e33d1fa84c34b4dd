"""What OpenVINO cannot do, or does otherwise than asked without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends import group_rules
from phipipe.backends.openvino.options import PIPELINE, Options
from phipipe.backends.rules import Rule

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe


def _stray(recipe: Recipe, options: Options) -> list[str]:
    """Options set for a precision that has no use for them."""
    if recipe.precision == "int4":
        return []
    return sorted(
        options.model_fields_set - ({"symmetric"} if recipe.precision == "int8" else set())
    )


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
            "takes": "takes `symmetric` only" if r.precision == "int8" else "quantizes nothing",
        },
    ),
    group_rules.rule("V13", ("int4",), (32, 64, 128, 256)),
)

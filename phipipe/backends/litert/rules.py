"""What LiteRT's export and kernels cannot do, or do badly, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends import learned_rules
from phipipe.backends.litert.options import BITS, context_of, group_of, prefill_of
from phipipe.backends.rules import Fixup, Rule
from phipipe.backends.widths import Width
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.backends.litert.options import Options
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

# transformers' types that were exported here and compared with transformers' logits.
MODEL_TYPES = ("phi3", "phi", "llama", "mistral", "qwen2", "qwen3")


def is_odd(group: int, checkpoint: Checkpoint) -> bool:
    return group > 0 and not checkpoint.is_divided_by(group)


def _groups(options: Options) -> int | None:
    """Weights in a group of some matrix that the map names; None: it asks for none."""
    sizes = (one.group_size or -1 for one in options.map.values() if isinstance(one, Width))
    return next((size for size in sizes if size > 0), None)


def _rounds(recipe: Recipe, options: Options) -> str | None:
    """The option that has a word about rounding, though weights are learned."""
    named = options.group_size is not None and options.group_size != recipe.weights.group_size
    return "group_size" if named and recipe.weights.learn is not None else None


def _working(checkpoint: Checkpoint) -> str:
    """What may stand for the group size, in words."""
    sizes = [str(size) for size in (32, 64, 128) if not is_odd(size, checkpoint)]
    return ", ".join([*sizes, "-1"])


RULES = (
    Rule(
        id="R01",
        level="error",
        when=lambda r, o, c: c.model_type not in MODEL_TYPES,
        message="models of type `{checkpoint.model_type}` were never exported to LiteRT by phipipe",
        hint=f"it exports these types: {', '.join(MODEL_TYPES)}",
    ),
    Rule(
        id="R02",
        level="error",
        when=lambda r, o, c: context_of(o, c) > c.context_length,
        message="`context_length: {options.context_length}` is more than this model's "
        "{checkpoint.context_length}",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R03",
        level="error",
        when=lambda r, o, c: prefill_of(o, c) > context_of(o, c),
        message="`prefill_length: {options.prefill_length}` is more than the cache holds",
        hint="set `quantize.prefill_length` to `context_length` or less",
    ),
    Rule(
        id="R04",
        level="error",
        when=lambda r, o, c: (
            max(r.evaluate.window, r.measure.prompt_tokens + r.measure.new_tokens)
            > context_of(o, c)
        ),
        message="the evaluation needs a longer cache than is exported: windows of "
        "{recipe.evaluate.window} tokens, "
        "measurements of {recipe.measure.prompt_tokens} and {recipe.measure.new_tokens}",
        hint="raise `quantize.context_length`, or lower `evaluate.window`, "
        "`measure.prompt_tokens` or `new_tokens`",
    ),
    Rule(
        id="R05",
        level="error",
        when=lambda r, o, c: (
            c.longrope and c.original_context_length < context_of(o, c) <= c.context_length
        ),
        message="the export holds one set of LongRoPE factors, the short ones: beyond "
        "{checkpoint.original_context_length} tokens the model would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R06",
        level="error",
        when=lambda r, o, c: 0 < (c.sliding_window or 0) < context_of(o, c) <= c.context_length,
        message="litert-torch cannot export the sliding window of {checkpoint.sliding_window} "
        "tokens: with a longer "
        "cache the model would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R07",
        level="error",
        when=lambda r, o, c: (
            (o.group_size or -1) > 0 and (r.precision == "int8" or o.scheme == "weight_only")
        ),
        message="LiteRT runs groups of weights in dynamic int4 only",
        hint="leave `group_size` out, or set `precision: int4` and `scheme: dynamic`",
    ),
    Rule(
        id="R08",
        level="error",
        when=lambda r, o, c: (
            r.precision == "int4"
            and r.weights.learn is None  # those have groups of their own
            and is_odd(group_of(r, o), c)
        ),
        message="groups of {group} do not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size})",
        hint="for `quantize.group_size` these work: {working} (-1 is a whole row); or choose int8",
        words=lambda r, o, c: {"group": group_of(r, o), "working": _working(c)},
    ),
    Rule(
        id="R09",
        level="warning",
        when=lambda r, o, c: (
            r.precision == "int4" and r.weights.learn is None and group_of(r, o) < 0
        ),
        message="int4 with one scale for a whole row is further from the original than in "
        "groups of 32, in a file of "
        "the same size",
        hint="leave `quantize.group_size` and `scheme` out, or choose int8",
    ),
    Rule(
        id="R15",
        level="error",
        when=lambda r, o, c: o.scheme == "weight_only" and _groups(o) is not None,
        message="`quantize.map` asks for groups of {group}, which LiteRT runs with "
        "`scheme: dynamic` alone",
        hint="give `group_size: -1`, or leave `quantize.scheme` out",
        words=lambda r, o, c: {"group": _groups(o)},
    ),
    Rule(
        id="R16",
        level="error",
        when=lambda r, o, c: r.weights.learn is not None and o.scheme == "weight_only",
        message="learned weights share scales in groups, which LiteRT runs with "
        "`scheme: dynamic` alone",
        hint="leave `quantize.scheme` out",
    ),
    learned_rules.rounds_again("R17", _rounds),
    Rule(
        id="R18",
        level="error",
        when=lambda r, o, c: r.weights.learn == "signround",
        message="auto-round gives scales either sign, and XNNPACK, which computes for LiteRT, "
        "takes none below 0",
        hint="set `weights.learn: gptq`",
    ),
    Rule(
        id="R19",
        level="error",
        when=lambda r, o, c: r.weights.learn is not None and c.model_type == "phi",
        message="litert-torch folds the scales of `{checkpoint.architecture}`'s LayerNorms into "
        "its matrices, which learned weights would not hold",
        hint="take `weights.learn` out; `quantize.map` gives single matrices their widths",
    ),
    Rule(
        id="R14",
        level="warning",
        when=lambda r, o, c: (
            r.precision not in BITS and bool({"scheme", "group_size", "map"} & o.model_fields_set)
        ),
        message="`quantize.scheme`, `group_size` and `map` change nothing: {recipe.precision} "
        "quantizes nothing",
        hint="take them out, or choose int8 or int4",
    ),
)


def _windowless(checkpoint: Checkpoint) -> dict[str, Json]:
    """What else says that a layer has a window: a flag, and a list that transformers 5 writes."""
    off: dict[str, Json] = {"use_sliding_window": False, "layer_types": None}
    return {key: value for key, value in off.items() if checkpoint.config.get(key)}


FIXUPS = (
    Fixup(
        id="F3",
        rule="R06",
        when=lambda r, c: c.sliding_window is not None,
        reason="litert-torch cannot export a sliding window; the exported cache is never "
        "longer than it",
        patch=lambda c: {"sliding_window": None, **_windowless(c)},
    ),
)

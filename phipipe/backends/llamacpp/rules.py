"""What llama.cpp or its converter cannot do, or does otherwise than asked without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends import widths
from phipipe.backends.llamacpp.options import LEARNED, Options, type_of
from phipipe.backends.llamacpp.types import BLOCK_256, BLOCK_256_TENSORS, FLOATS, TYPES, WEIGHED
from phipipe.backends.rules import SOFTMAX_ROUTED, WINDOWLESS, Rule
from phipipe.models import linears

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

_PLAIN_EVERY = 4  # SmolLM3's layers without positions, built into llama.cpp (models/smollm3.cpp)


def _belongs(precision: str, kind: str) -> bool:
    bits = TYPES[kind].bits
    return (
        kind in FLOATS
        if precision.startswith("fp")
        else (bits < 8) == (precision == "int4") and bits < 16
    )


def _width_of(precision: str, kind: str) -> bool:
    return {"fp32": kind == "F32", "fp16": kind in ("F16", "BF16")}.get(
        precision, _belongs(precision, kind)
    )


def _turned(checkpoint: Checkpoint) -> list[bool]:
    """For each layer, whether it has rotary positions."""
    step = int(checkpoint.config.get("no_rope_layer_interval") or _PLAIN_EVERY)
    usual = [(i + 1) % step != 0 for i in range(checkpoint.layers)]
    return [bool(turned) for turned in checkpoint.config.get("no_rope_layers") or usual]


def _is_other_smollm3(checkpoint: Checkpoint) -> bool:
    known = [(i + 1) % _PLAIN_EVERY != 0 for i in range(checkpoint.layers)]
    return checkpoint.model_type == "smollm3" and _turned(checkpoint) != known


def _columns_of(options: Options, checkpoint: Checkpoint) -> dict[str, tuple[str, int]]:
    """Matrix → the type that the map names for it, and how long its rows are."""
    found = widths.fitting(options.map, checkpoint)
    shapes = linears.shapes(checkpoint)
    return {n: (one, shapes[n][1]) for n, one in found.items() if isinstance(one, str)}


def _uneven(options: Options, checkpoint: Checkpoint) -> str | None:
    """A matrix whose rows are no whole blocks of the type that the map names."""
    for name, (kind, columns) in _columns_of(options, checkpoint).items():
        if columns % (1 if kind in FLOATS else 256 if kind in BLOCK_256_TENSORS else 32):
            return name
    return None


def _rounds(recipe: Recipe, options: Options) -> str | None:
    """The option that has a word about rounding, though weights are learned."""
    if recipe.weights.learn is None:
        return None
    other = {name for name in options.model_fields_set - {"map"} if getattr(options, name)}
    other -= {"type"} if options.type == LEARNED else set()
    return min(other, default=None)


RULES = (
    Rule(
        id="L01",
        level="error",
        when=lambda r, o, c: TYPES[type_of(r, o)].needs_imatrix and not o.imatrix,
        message="`{options.type}` is unusable without an importance matrix; llama.cpp refuses it",
        hint="set `quantize.imatrix: true` (it learns from `calibrate.text`)",
    ),
    Rule(
        id="L05",
        level="error",
        when=lambda r, o, c: c.tied and o.output_type is not None and o.embedding_type is not None,
        message="the embedding is also the output layer: `output_type` and `embedding_type` "
        "name one tensor twice",
        hint="set `embedding_type` alone",
    ),
    Rule(
        id="L08",
        level="error",
        when=lambda r, o, c: c.tokenizer == "other",
        message="llama.cpp has no vocabulary of this tokenizer's kind: it is neither byte-level "
        "BPE nor made of SentencePiece's pieces",
        hint="take `tokenizer.json`, or `tokenizer.model`, from the original repository",
    ),
    Rule(
        id="L10",
        level="error",
        when=lambda r, o, c: not _width_of(r.precision, type_of(r, o)),
        message="`{options.type}` is no {recipe.precision} type",
        hint="set `precision` to int4 for all types below 8 bits, int8 for Q8_0, fp16 for F16 "
        "and BF16",
    ),
    Rule(
        id="L11",
        level="error",
        when=lambda r, o, c: type_of(r, o) in BLOCK_256 and not c.is_divided_by(256),
        message="`{recipe.precision}` would be stored in blocks of 256, which do not divide "
        "this model's layers "
        "(hidden size {checkpoint.hidden_size}, intermediate size "
        "{checkpoint.intermediate_size}): llama.cpp would "
        "take other types without a word",
        hint="set `quantize.type` to one with blocks of 32: Q4_0, IQ4_NL, Q5_0 or Q8_0",
    ),
    Rule(
        id="L12",
        level="error",
        when=lambda r, o, c: TYPES[type_of(r, o)].bits < 16 and not c.is_divided_by(32),
        message="blocks of 32 do not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size})",
        hint="choose fp16",
    ),
    Rule(
        id="L14",
        level="warning",
        when=lambda r, o, c: type_of(r, o) in FLOATS and bool(o.model_fields_set - {"type"}),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="L15",
        level="error",
        when=lambda r, o, c: any(remark.rule == "W04" for remark in c.remarks),
        message="llama.cpp's converter fails on a token that lies beyond the model's table, if "
        "only for padding",
        hint="take the added token out of the tokenizer's files, and pad with one that the "
        "model has",
    ),
    Rule(
        id="L17",
        level="warning",
        when=lambda r, o, c: c.keeps_marks,
        message="llama.cpp cuts words before characters that combine with letters: texts in Hindi, "
        "in Thai, in Hebrew with points become other tokens than the original's",
        hint="if you need these languages, choose another backend; other texts are read alike",
    ),
    Rule(
        id="L16",
        level="error",
        when=lambda r, o, c: _is_other_smollm3(c),
        message="`no_rope_layers`: llama.cpp leaves out the positions of every fourth layer, "
        "whatever the config says, and this model has other layers without them",
        hint="`backend: mlx` or `onnxruntime` read the list",
    ),
    Rule(
        id="L18",
        level="error",
        when=lambda r, o, c: not o.imatrix and bool(WEIGHED & set(map(str, o.map.values()))),
        message="`quantize.map` names a type that is unusable without an importance matrix",
        hint="set `quantize.imatrix: true` (it learns from `calibrate.text`)",
    ),
    Rule(
        id="L19",
        level="error",
        when=lambda r, o, c: _uneven(o, c) is not None,
        message="the rows of `{name}` are no whole blocks of the type that `quantize.map` names: "
        "llama.cpp would take another without a word",
        hint="name one with blocks of 32: Q4_0, IQ4_NL, Q5_0 or Q8_0",
        words=lambda r, o, c: {"name": _uneven(o, c)},
    ),
    Rule(
        id="L20",
        level="error",
        when=lambda r, o, c: _rounds(r, o) is not None,
        message="weights are learned, and `quantize.{option}` would round them otherwise",
        hint="take it out; widths of single matrices stand in `quantize.map`",
        words=lambda r, o, c: {"option": _rounds(r, o)},
    ),
    *SOFTMAX_ROUTED,
    *WINDOWLESS,
    Rule(
        id="M10",
        level="warning",
        when=lambda r, o, c: (
            c.longrope and (r.context is None or r.context > c.original_context_length)
        ),
        message="with a context above {checkpoint.original_context_length} tokens llama.cpp "
        "takes LongRoPE's long "
        "factors for every prompt (llama.cpp issue 24823): load the model with at most that",
        hint="`context: {checkpoint.original_context_length}` says that to this build",
    ),
)

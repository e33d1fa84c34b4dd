"""What ONNX Runtime's converters and kernels cannot do, or do badly, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends import learned_rules, widths
from phipipe.backends.rules import Rule

if TYPE_CHECKING:
    from phipipe.backends.base import Options
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

# Text models of onnxruntime-genai 0.18's builder (builder.py, create_model); Phi's other kinds have
# rules of their own.
_PHI = ("Phi", "Phi3", "PhiMoE", "Phi3Small", "Phi3V", "Phi4MM", "Phi4Flash")
_OTHERS = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Gemma3",
    "SmolLM3",
    "Granite",
    "Nemotron",
    "Olmo",
)
_NEWER = ("InternLM2", "Ernie4_5", "GptOss", "HunYuanDenseV1", "Lfm2")
TEXT_MODELS = frozenset(f"{name}ForCausalLM" for name in (*_PHI, *_OTHERS, *_NEWER))


def _rotary_pairs(checkpoint: Checkpoint) -> int:
    return int(checkpoint.head_size * checkpoint.partial_rotary_factor) // 2


def _output_widths(checkpoint: Checkpoint) -> set[int]:
    """Output widths of a layer's linears, as the checkpoint stores them (q, k, v and gate, up are
    joined)."""
    if checkpoint.model_type == "phi":
        return {checkpoint.hidden_size, checkpoint.intermediate_size}
    joined = (checkpoint.heads + 2 * checkpoint.kv_heads) * checkpoint.head_size
    return {checkpoint.hidden_size, joined, 2 * checkpoint.intermediate_size}


def _odd_blocks(checkpoint: Checkpoint, block_size: int) -> bool:
    """Whether some weight has an odd number of blocks in its rows: half a byte of zero points is
    left over."""
    return any(-(-width // block_size) % 2 for width in checkpoint.input_widths.values())


def _asks_olive(recipe: Recipe, options: Options) -> bool:
    """Whether one of Olive's passes is to run."""
    return recipe.precision in {"int8", "int4"} and (
        bool(options.rotate) or options.algorithm == "gptq"
    )


def _parts_attention(options: Options, checkpoint: Checkpoint) -> bool:
    """Whether the map tells queries, keys and values of one layer apart."""
    found = widths.fitting(options.map, checkpoint)
    for layer in range(checkpoint.layers):
        parts = (f"layers.{layer}.self_attn.{name}_proj" for name in "qkv")
        if len({found.get(part) for part in parts}) > 1:
            return True
    return False


def _rounds(recipe: Recipe, options: Options) -> str | None:
    """The option that has a word about rounding, though weights are learned."""
    usual = {"algorithm": "default", "symmetric": True, "rotate": None, "mixed": "none"}
    other = [name for name, value in usual.items() if getattr(options, name) != value]
    other += [name for name in ("exclude",) if options.exclude]
    other += ["embeddings"] if options.embeddings == "float" else []
    named = "block_size" in options.model_fields_set
    other += ["block_size"] if named and options.block_size != recipe.weights.group_size else []
    return other[0] if other and recipe.weights.learn is not None else None


RULES: tuple[Rule, ...] = (
    Rule(
        id="M04",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe",
        message="onnxruntime-genai 0.18 cannot build Phi's mixtures of experts: its builder lost "
        "their LongRoPE, and onnxruntime 1.32 computes their experts on NVIDIA GPUs alone "
        "(onnxruntime-genai pull request 850)",
        hint="`backend: openvino` computes it exactly; or use a dense Phi model",
    ),
    Rule(
        id="O09",
        level="error",
        when=lambda r, o, c: r.precision == "int4" and o.algorithm == "k_quant" and o.symmetric,
        message="`k_quant` always stores zero points; it cannot be symmetric",
        hint="set `quantize.algorithm: default` or `rtn`",
    ),
    Rule(
        id="O14",
        level="warning",
        when=lambda r, o, c: r.precision in {"fp32", "fp16"} and bool(o.model_fields_set),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="O15",
        level="warning",
        when=lambda r, o, c: r.precision == "int8" and o.mixed != "none",
        message="`quantize.mixed: {options.mixed}` keeps layers at 8 bits; at int8 all have 8 "
        "anyway",
        hint="take `quantize.mixed` out",
    ),
    Rule(
        id="O16",
        level="error",
        when=lambda r, o, c: r.precision == "int8" and o.embeddings == "quantized" and not c.tied,
        message="onnxruntime quantizes an untied embedding to 4 bits only",
        hint="remove `quantize.embeddings`, or choose int4",
    ),
    Rule(
        id="O17",
        level="error",
        when=lambda r, o, c: (
            r.precision == "int4"
            and o.algorithm in {"rtn", "k_quant"}
            and not o.symmetric
            and _odd_blocks(c, o.block_size)
        ),
        message="`{options.algorithm}` with zero points needs an even number of blocks in every "
        "row of a weight; "
        "with `block_size: {options.block_size}` this model has odd ones",
        hint="choose a smaller `quantize.block_size`, or `algorithm: default`",
    ),
    Rule(
        id="O18",
        level="error",
        when=lambda r, o, c: c.vocab_size in _output_widths(c),
        message="the vocabulary ({checkpoint.vocab_size}) is as wide as another layer's output; "
        "onnxruntime-genai takes that layer for the LM head and builds a wrong model",
        hint="choose another backend, such as `openvino`",
    ),
    Rule(
        id="O19",
        level="error",
        when=lambda r, o, c: _rotary_pairs(c) % 8 != 0,
        message="onnxruntime's attention needs rotary dimensions in multiples of 16",
        hint="choose another backend, such as `openvino`",
    ),
    Rule(
        id="O20",
        level="error",
        when=lambda r, o, c: c.architecture not in TEXT_MODELS,
        message="onnxruntime-genai's builder does not know `{checkpoint.architecture}` as a "
        "text model",
        hint="it knows the dense Phi models and, among others, Llama, Mistral, Qwen, Gemma and "
        "SmolLM",
    ),
    Rule(
        id="O21",
        level="error",
        when=lambda r, o, c: _asks_olive(r, o) and c.model_type != "phi3",
        message="`quantize.rotate` and `algorithm: gptq` work on phi3 models; "
        "`{checkpoint.architecture}` is another",
        hint="take the option out of `quantize`",
    ),
    Rule(
        id="O22",
        level="error",
        when=lambda r, o, c: r.precision == "int8" and o.algorithm == "gptq",
        message="`gptq` is for int4: at 8 bits rounding to nearest loses nothing to speak of",
        hint="remove `quantize.algorithm`, or choose int4",
    ),
    Rule(
        id="O23",
        level="error",
        when=lambda r, o, c: (
            r.precision == "int4" and o.algorithm == "gptq" and not c.is_divided_by(o.block_size)
        ),
        message="`gptq` needs blocks that divide the rows of every weight; `block_size: "
        "{options.block_size}` does not",
        hint="choose a smaller `quantize.block_size`",
    ),
    Rule(
        id="O25",
        level="warning",
        when=lambda r, o, c: r.precision in {"int8", "int4"} and bool(o.rotate) and c.tied,
        message="rotation parts the embedding from the LM head: the artifact holds both, the "
        "embedding in full width",
        hint="`quantize.embeddings: quantized` makes it smaller",
    ),
    Rule(
        id="O26",
        level="error",
        when=lambda r, o, c: _parts_attention(o, c),
        message="`quantize.map` gives queries, keys and values of a layer different widths, and "
        "here they are one matrix",
        hint="name `*.qkv_proj`, which is all three",
    ),
    Rule(
        id="O27",
        level="error",
        when=lambda r, o, c: o.algorithm == "gptq" and bool(o.map),
        message="Olive's `gptq` knows no `quantize.map`",
        hint="set `weights: {{learn: gptq}}` in place of `quantize.algorithm`: it follows the map",
    ),
    learned_rules.rounds_again("O28", _rounds),
)

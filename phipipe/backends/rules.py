"""What cannot work, or works badly, as data: one row per rule, read top to bottom.

The rules' numbers are those of the support matrix the project was started from; a message says what
is wrong in the user's own names, a hint what to do. Conditions see the recipe, the backend's
options and the checkpoint's shape, nothing else: no disk, no network. The device's side is decided
in ``plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phipipe import backends
from phipipe.backends.base import Job, Unseen
from phipipe.models import checkpoints, seeing
from phipipe.steps import Advice, Json

if TYPE_CHECKING:
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Recipe

    Condition = Callable[[Recipe, Any, Checkpoint], bool]
    Words = Callable[[Recipe, Any, Checkpoint], Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``message`` and ``hint`` are format strings over ``recipe``, ``options``, ``checkpoint``
    and what ``words`` works out. Why it is so, since when, and where it is discussed
    stands in ``assets/explanations.yaml``.
    """

    id: str
    level: str  # "error" or "warning"
    when: Condition
    message: str
    hint: str | None = None
    words: Words | None = None


@dataclass(frozen=True, kw_only=True)
class Fixup:
    """A change to the staged copy's ``config.json``, made without asking and recorded in the
    manifest."""

    id: str
    rule: str
    when: Callable[[Recipe, Checkpoint], bool]
    reason: str
    patch: Callable[[Checkpoint], Mapping[str, Json]]


def check(job: Job[Any], table: Sequence[Rule] | None = None) -> list[Advice]:
    """Advice of every rule of ``table`` (default: the rules that hold for all backends) that
    applies.

    Of ``ANY_MODEL``, only rules apply that do not look at the model.
    """
    rules = MODELS if table is None else table
    return [advice for rule in rules if (advice := _applied(rule, job))]


def _applied(rule: Rule, job: Job[Any]) -> Advice | None:
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    try:
        if not rule.when(recipe, options, checkpoint):
            return None
        facts = {"recipe": recipe, "options": options, "checkpoint": checkpoint}
        words = rule.words(recipe, options, checkpoint) if rule.words else {}
        hint = rule.hint.format(**facts, **words) if rule.hint else None
        message = rule.message.format(**facts, **words)
        return Advice(level=rule.level, rule=rule.id, message=message, hint=hint)
    except Unseen:
        return None


def fixups(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, dict[str, Json]]:
    """Fix-ups that the checkpoint needs on the recipe's backend: id → ``rule``, ``reason`` and
    ``patch``."""
    return {
        fix.id: {"rule": fix.rule, "reason": fix.reason, "patch": dict(fix.patch(checkpoint))}
        for fix in (*FIXUPS, *backends.load(recipe.backend).fixups)
        if fix.when(recipe, checkpoint)
    }


def _is_phi4_mini(checkpoint: Checkpoint) -> bool:
    """Phi-4-mini and its reasoning variants: tied, o200k vocabulary (nothing in the config names
    the family)."""
    return checkpoint.model_type == "phi3" and checkpoint.tied and checkpoint.vocab_size == 200064


def _is_uniform(recipe: Recipe, options: Any) -> bool:
    return recipe.precision == "int4" and backends.load(recipe.backend).is_uniform(options)


def _original_spelling(checkpoint: Checkpoint) -> dict[str, Json]:
    """What transformers 5 renamed or moved, where every converter looks for it."""
    config = checkpoint.config
    patch: dict[str, Json] = {
        "rope_parameters": None,
        "rope_theta": checkpoint.rope_theta,
        "partial_rotary_factor": checkpoint.partial_rotary_factor,
        "rope_scaling": None if checkpoint.rope_scaling is None else dict(checkpoint.rope_scaling),
        "original_max_position_embeddings": checkpoint.original_context_length,
    }
    if "dtype" in config:
        patch["torch_dtype"] = config["dtype"]
    if checkpoint.architecture == "PhimoeForCausalLM":
        patch["architectures"] = ["PhiMoEForCausalLM"]
    return patch


def _rotary_pairs(checkpoint: Checkpoint) -> int:
    return int(checkpoint.head_size * checkpoint.partial_rotary_factor) // 2


def _widths(checkpoint: Checkpoint) -> set[int]:
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


def _is_phi3_vision(config: Mapping[str, Any]) -> bool:
    """Whether pictures are laid out as ``vision_tower`` does it; what the config leaves out is as
    published."""
    told = {**(config.get("img_processor") or {}), **(config.get("embd_layer") or {})}
    usual = {"name": "clip_vision_model", "hd_transform_order": "sub_glb", "use_hd_transform": True}
    usual |= {"with_learnable_separator": True, "projection_cls": "mlp"}
    return all(told.get(key, value) == value for key, value in usual.items())


def _is_phi4_vision(config: Mapping[str, Any]) -> bool:
    """Whether pictures are laid out as ``vision_siglip`` does it; what the config leaves out is as
    published."""
    told = (config.get("embd_layer") or {}).get("image_embd_layer") or {}
    usual = {
        "crop_size": 448,
        "hd_transform_order": "sub_glb",
        "use_hd_transform": True,
        "projection_cls": "mlp",
    }
    usual |= {"with_learnable_separator": True, "image_token_compression_cls": "avg_pool_2d"}
    adapter = config.get("vision_lora") or {}
    return {"r", "lora_alpha"} <= set(adapter) and all(
        told.get(key, value) == value for key, value in usual.items()
    )


def _asks_olive(recipe: Recipe, options: Any) -> bool:
    """Whether one of Olive's passes is to run."""
    return recipe.precision in {"int8", "int4"} and (
        bool(options.rotate) or options.algorithm == "gptq"
    )


# Architectures with parts besides text; backends say of which they build the eyes.
MULTIMODAL = frozenset({*seeing.KINDS, "Phi4MultimodalForCausalLM", "Phi4ForCausalLMV"})
ROTARY_TYPES = (
    "phi",
    "phi3",
    "phimoe",
    "phi3_v",
    "phi4mm",
)  # their positions are scaled by LongRoPE alone
KNOWN_TYPES = (
    "phi",
    "phi3",
    "phimoe",
)  # whose configs phipipe can bring back into the hub's spelling
NATIVE = (
    "phipipe never runs a model's own code, and no library of its toolchains has this "
    "architecture built in"
)

MODELS: tuple[Rule, ...] = (
    Rule(
        id="M01",
        level="error",
        when=lambda r, o, c: c.architecture == "Phi4FlashForCausalLM",
        message="Phi-4-mini-flash (Mamba layers) is supported by no edge runtime",
        hint="use Phi-4-mini-reasoning",
    ),
    Rule(
        id="M02",
        level="error",
        when=lambda r, o, c: c.architecture == "Phi3SmallForCausalLM",
        message=f"Phi-3-small exists as remote code only: {NATIVE}",
        hint="use Phi-3-medium or Phi-3.5-mini",
    ),
    Rule(
        id="M03",
        level="error",
        when=lambda r, o, c: (
            (bool(c.parts) or c.architecture in MULTIMODAL)
            and c.architecture not in backends.load(r.backend).vision
        ),
        message="the model has {checkpoint.besides} besides text, and `{recipe.backend}` builds "
        "have no place for them",
        hint="Phi-3-vision and Phi-3.5-vision: `backend: onnxruntime` or `openvino`; "
        "Phi-4-multimodal as Microsoft "
        "published it: `backend: openvino`; for others take their text model (Phi-4-mini, "
        "Phi-4-reasoning)",
    ),
    Rule(
        id="M18",
        level="warning",
        when=lambda r, o, c: c.architecture in backends.load(r.backend).square,
        message="openvino-genai 2026.4 lays out pictures that are not square as if they were "
        "turned: pad them to "
        "squares before, as the program on the package's card does",
        hint="prepare pictures as that program does, or choose `backend: onnxruntime`",
    ),
    Rule(
        id="M17",
        level="error",
        when=lambda r, o, c: c.architecture == "Phi3VForCausalLM" and not _is_phi3_vision(c.config),
        message="its vision part is not arranged as Phi-3-vision's (CLIP, crops before the whole)",
        hint="use Phi-3-vision or Phi-3.5-vision as published, or a fine-tune of theirs",
    ),
    Rule(
        id="M19",
        level="error",
        when=lambda r, o, c: c.architecture == seeing.PHI4 and not _is_phi4_vision(c.config),
        message="its vision part is not arranged as Phi-4-multimodal's (SigLIP, crops before "
        "the whole)",
        hint="use Phi-4-multimodal as published, or a fine-tune of it",
    ),
    Rule(
        id="M20",
        level="warning",
        when=lambda r, o, c: (
            c.architecture == seeing.PHI4 and seeing.PHI4 in backends.load(r.backend).vision
        ),
        message="what hears is left out, and the adapter that the original uses with pictures "
        "alone is merged in for "
        "good: it sees and reads, and answers on plain text differ a little from the original's",
        hint="for text alone build Phi-4-mini, the language model in it",
    ),
    Rule(
        id="M06",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe" and c.head_size != c.hidden_size // c.heads,
        message="the heads of this mixture of experts (of {checkpoint.head_size}) are not "
        "hidden size / heads wide; no "
        "runtime computes that correctly",
        hint="use Phi-mini-MoE, or Phi-4-mini, which is as small",
    ),
    Rule(
        id="M07",
        level="error",
        when=lambda r, o, c: (
            c.resaved
            and c.model_type not in KNOWN_TYPES
            and not backends.load(r.backend).reads_resaved
        ),
        message="the checkpoint was saved again by transformers 5 (`rope_parameters` in "
        "config.json); "
        "other converters then lose its rotary factors without a word",
        hint="use the hub's original files",
    ),
    Rule(
        id="M21",
        level="error",
        when=lambda r, o, c: (
            c.model_type in ROTARY_TYPES and c.scaling != "default" and not c.longrope
        ),
        message="`rope_scaling` of type `{checkpoint.scaling}`: Phi models have LongRoPE, with "
        "its two lists of "
        "factors, or none; no runtime scales them otherwise",
        hint='set `"rope_scaling": null` and the `max_position_embeddings` that the model was '
        "trained with",
    ),
    Rule(
        id="M22",
        level="error",
        when=lambda r, o, c: c.model_type not in ROTARY_TYPES and c.scaling == "dynamic",
        message="`rope_scaling` of type `dynamic` follows the length of each text, which "
        "nothing built once can",
        hint='set `"rope_scaling": null` and the `max_position_embeddings` that the model was '
        "trained with",
    ),
    Rule(
        id="M14",
        level="warning",
        when=lambda r, o, c: r.context is not None and r.context > c.context_length,
        message="`context: {recipe.context}` is more than the model's "
        "{checkpoint.context_length} tokens",
        hint="set `context: {checkpoint.context_length}` or less",
    ),
    Rule(
        id="D02",
        level="warning",
        when=lambda r, o, c: _is_phi4_mini(c) and _is_uniform(r, o),
        message="Phi-4-mini degenerates when all its layers have 4 bits (onnxruntime-genai "
        "issue 1450)",
        hint="keep down projections and LM head wider: {wider}",
        words=lambda r, o, c: {"wider": backends.load(r.backend).wider},
    ),
)

# For runtimes that know one way of choosing experts.
SOFTMAX_ROUTED: tuple[Rule, ...] = (
    Rule(
        id="M05",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe",
        message="`{recipe.backend}` routes tokens by a plain softmax where Phi's mixtures of "
        "experts were trained with "
        "SparseMixer: outputs differ from the original's at every precision",
        hint="`backend: openvino` computes it exactly",
    ),
)

# For runtimes that compute without the sliding window that a model has.
WINDOWLESS: tuple[Rule, ...] = (
    Rule(
        id="M09",
        level="error",
        when=lambda r, o, c: c.cuts and r.evaluate.window > (c.sliding_window or 0),
        message="`{recipe.backend}` ignores the model's sliding window of "
        "{checkpoint.sliding_window} tokens: windows "
        "of {recipe.evaluate.window} tokens would differ from the original",
        hint="set `evaluate.window` to that or less; `onnxruntime` and `openvino` have the window",
    ),
    Rule(
        id="M15",
        level="warning",
        when=lambda r, o, c: c.cuts and (r.context is None or r.context > (c.sliding_window or 0)),
        message="`{recipe.backend}` ignores the model's sliding window: use it with at most "
        "{checkpoint.sliding_window} tokens, beyond which it differs from the original",
        hint="`context: {checkpoint.sliding_window}` says that to this build",
    ),
)

# Text models of onnxruntime-genai 0.18's builder (builder.py, create_model); Phi's other kinds have
# rules above.
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

ONNXRUNTIME: tuple[Rule, ...] = (
    Rule(
        id="M04",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe",
        message="onnxruntime-genai 0.18 cannot build Phi's mixtures of experts (it lost their "
        "LongRoPE)",
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
        when=lambda r, o, c: c.vocab_size in _widths(c),
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
)

FIXUPS: tuple[Fixup, ...] = (  # where two replace one key, the later has the last word
    Fixup(
        id="F7",
        rule="M07",
        when=lambda r, c: (
            c.resaved and c.model_type in KNOWN_TYPES and not backends.load(r.backend).reads_resaved
        ),
        reason="transformers 5 saved the checkpoint again and moved its rotary settings to "
        "`rope_parameters`, where "
        "other converters do not look",
        patch=_original_spelling,
    ),
    Fixup(
        id="F9",
        rule="W06",
        when=lambda r, c: any(remark.rule == "W06" for remark in c.remarks),
        reason="config.json names no class of model, by which converters choose; its "
        "`model_type` has one class alone",
        patch=lambda c: {"architectures": [c.architecture]},
    ),
    Fixup(
        id="F8",
        rule="M13",
        when=lambda r, c: bool(checkpoints.respelled(c.config)),
        reason="LongRoPE under the name that Phi-3 first gave it, which transformers 5 and "
        "mlx-lm do not know any more",
        patch=lambda c: checkpoints.respelled(c.config),
    ),
)

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

from pydantic import BaseModel

from phipipe import fixups, vision
from phipipe.backends.base import Advice, Unseen

if TYPE_CHECKING:
    from phipipe.models import Checkpoint
    from phipipe.recipe import Recipe

    Condition = Callable[[Recipe, Any, Checkpoint], bool]
    Words = Callable[[Recipe, Any, Checkpoint], Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``message`` and ``hint`` are format strings over ``recipe``, ``options``, ``checkpoint``,
    ``uniform`` and what ``words`` works out. Why it is so, since when, and where it is discussed
    stands in ``assets/explanations.yaml``.
    """

    id: str
    level: str  # "error" or "warning"
    when: Condition
    message: str
    hint: str | None = None
    words: Words | None = None


def check(
    recipe: Recipe, options: BaseModel, checkpoint: Checkpoint, table: Sequence[Rule] = ()
) -> list[Advice]:
    """Advice of every rule of ``table`` (default: the rules that hold for all backends) that
    applies.

    Of ``ANY_MODEL``, only rules apply that do not look at the model.
    """
    facts = {"recipe": recipe, "options": options, "checkpoint": checkpoint}
    facts |= {"uniform": UNIFORM[recipe.backend][1] if recipe.backend in UNIFORM else ""}
    applied = (_applied(rule, facts) for rule in table or MODELS)
    return [advice for advice in applied if advice]


def _applied(rule: Rule, facts: Mapping[str, Any]) -> Advice | None:
    recipe, options, checkpoint = (facts[name] for name in ("recipe", "options", "checkpoint"))
    try:
        if not rule.when(recipe, options, checkpoint):
            return None
        words = rule.words(recipe, options, checkpoint) if rule.words else {}
        message = rule.message.format(**facts, **words)
        hint = rule.hint.format(**facts, **words) if rule.hint else None
        return Advice(level=rule.level, rule=rule.id, message=message, hint=hint)
    except Unseen:
        return None


def _is_phi4_mini(checkpoint: Checkpoint) -> bool:
    """Phi-4-mini and its reasoning variants: tied, o200k vocabulary (nothing in the config names
    the family)."""
    return checkpoint.model_type == "phi3" and checkpoint.tied and checkpoint.vocab_size == 200064


# By backend: whether int4 options give all layers the same width, and what keeps the sensitive ones
# wider.
_WIDER = frozenset({None, "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K"})
UNIFORM: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "onnxruntime": (lambda o: bool(o.mixed == "none"), "set `quantize.mixed: layers`"),
    "openvino": (lambda o: bool(o.ratio == 1), "set `quantize.ratio: 0.8`, or `precision: int8`"),
    "llamacpp": (
        lambda o: o.pure or (o.type not in _WIDER and not o.tensors),
        "set `quantize.type: Q4_K_M`",
    ),
    "mlx": (
        lambda o: bool(o.mixed == "none" and (o.bits or 4) <= 4),
        "set `quantize.mixed: mixed_4_6`",
    ),
    "qnn": (lambda o: not o.keep_8bit, "leave `quantize.keep_8bit` as it is by default"),
    "torch": (lambda o: True, "set `precision: int8`"),
    "litert": (lambda o: True, "set `precision: int8`"),
}


def _is_uniform(recipe: Recipe, options: Any) -> bool:
    return (
        recipe.precision == "int4"
        and recipe.backend in UNIFORM
        and UNIFORM[recipe.backend][0](options)
    )


def _is_phi3_vision(config: Mapping[str, Any]) -> bool:
    """Whether pictures are laid out as ``vision_tower`` does it; what the config leaves out is as
    published."""
    settings = {**(config.get("img_processor") or {}), **(config.get("embd_layer") or {})}
    return _is_usual(settings, {**_USUAL, "name": "clip_vision_model"})


def _is_phi4_vision(config: Mapping[str, Any]) -> bool:
    """Whether pictures are laid out as ``vision_siglip`` does it; what the config leaves out is as
    published."""
    settings = (config.get("embd_layer") or {}).get("image_embd_layer") or {}
    usual = {**_USUAL, "crop_size": 448, "image_token_compression_cls": "avg_pool_2d"}
    adapter = config.get("vision_lora") or {}
    return {"r", "lora_alpha"} <= set(adapter) and _is_usual(settings, usual)


_USUAL: Mapping[str, Any] = {
    "hd_transform_order": "sub_glb",
    "use_hd_transform": True,
    "with_learnable_separator": True,
    "projection_cls": "mlp",
}


def _is_usual(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    return all(settings.get(key, value) == value for key, value in usual.items())


# Architectures with parts besides text → backends that convert them, or their eyes at least.
MULTIMODAL: Mapping[str, frozenset[str]] = {
    name: frozenset(vision.KINDS[name].backends if name in vision.KINDS else ())
    for name in (*vision.KINDS, "Phi4MultimodalForCausalLM", "Phi4ForCausalLMV")
}
# Their positions are scaled by LongRoPE alone.
ROTARY_TYPES = ("phi", "phi3", "phimoe", "phi3_v", "phi4mm")
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
            and r.backend not in MULTIMODAL.get(c.architecture, ())
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
        when=lambda r, o, c: vision.is_square(c.architecture, r.backend),
        message="openvino-genai 2026.4 lays out pictures that are not square as if they were "
        "turned: pad them to squares before, as the program on the package's card does",
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
        when=lambda r, o, c: c.architecture == vision.PHI4 and not _is_phi4_vision(c.config),
        message="its vision part is not arranged as Phi-4-multimodal's (SigLIP, crops before "
        "the whole)",
        hint="use Phi-4-multimodal as published, or a fine-tune of it",
    ),
    Rule(
        id="M20",
        level="warning",
        when=lambda r, o, c: c.architecture == vision.PHI4 and r.backend in MULTIMODAL[vision.PHI4],
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
        id="M04",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe" and r.backend == "onnxruntime",
        message="onnxruntime-genai 0.18 cannot build Phi's mixtures of experts (it lost their "
        "LongRoPE)",
        hint="`backend: openvino` computes it exactly; or use a dense Phi model",
    ),
    Rule(
        id="M05",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe" and r.backend in {"llamacpp", "mlx"},
        message="`{recipe.backend}` routes tokens by a plain softmax where Phi's mixtures of "
        "experts were trained with "
        "SparseMixer: outputs differ from the original's at every precision",
        hint="`backend: openvino` computes it exactly",
    ),
    Rule(
        id="M07",
        level="error",
        when=lambda r, o, c: (
            r.backend != "torch" and c.resaved and c.model_type not in fixups.KNOWN_TYPES
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
        hint="keep down projections and LM head wider: {uniform}",
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

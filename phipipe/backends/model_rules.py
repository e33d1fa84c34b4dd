"""What holds of a model whatever the backend, as data: one row per rule, read top to bottom.

The rules' numbers are those of the support matrix the project was started from. Where a backend
differs, its face says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe import backends
from phipipe.backends import fixups, learned_rules, tokenizer_rules, widths
from phipipe.backends.rules import Rule
from phipipe.models import family, layouts, rotary
from phipipe.steps import Json
from phipipe.vision import kinds

if TYPE_CHECKING:
    from phipipe.backends.base import Options
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe


def _is_phi4_mini(checkpoint: Checkpoint) -> bool:
    """Phi-4-mini and its reasoning variants: tied, o200k vocabulary (nothing in the config names
    the family)."""
    return checkpoint.model_type == "phi3" and checkpoint.tied and checkpoint.vocab_size == 200064


def _is_uniform(recipe: Recipe, options: Options) -> bool:
    """Whether all layers have the same few bits: learned ones do unless the map widens some."""
    if recipe.precision != "int4":
        return False
    if recipe.weights.learn is not None:
        return not widths.widens_layers(getattr(options, "map", {}))
    return backends.load(recipe.backend).is_uniform(options)


def _is_phi3_vision(config: Mapping[str, Json]) -> bool:
    """Whether pictures are laid out as ``vision.clip`` does it; what the config leaves out is as
    published."""
    settings = {**(config.get("img_processor") or {}), **(config.get("embd_layer") or {})}
    return _is_usual(settings, {**_USUAL, "name": "clip_vision_model"})


def _is_phi4_vision(config: Mapping[str, Json]) -> bool:
    """Whether pictures are laid out as ``vision.siglip`` does it; what the config leaves out is as
    published."""
    settings = (config.get("embd_layer") or {}).get("image_embd_layer") or {}
    usual = {**_USUAL, "crop_size": 448, "image_token_compression_cls": "avg_pool_2d"}
    adapter = config.get("vision_lora") or {}
    return {"r", "lora_alpha"} <= set(adapter) and _is_usual(settings, usual)


_USUAL: Mapping[str, Json] = {
    "hd_transform_order": "sub_glb",
    "use_hd_transform": True,
    "with_learnable_separator": True,
    "projection_cls": "mlp",
}


def _is_usual(settings: Mapping[str, Json], usual: Mapping[str, Json]) -> bool:
    return all(settings.get(key, value) == value for key, value in usual.items())


def _able(model_type: str) -> list[str]:
    """Backends whose faces do not say that they cannot build such a model."""
    return [name for name in backends.names() if model_type not in backends.load(name).unable]


# Architectures with parts besides text; backends say of which they build the eyes.
MULTIMODAL = frozenset({*kinds.KINDS, "Phi4MultimodalForCausalLM", "Phi4ForCausalLMV"})
NATIVE = (
    "phipipe never runs a model's own code, and no library of its toolchains has this "
    "architecture built in"
)


def _is_unknown(architecture: str) -> bool:
    """Whether it is neither laid out in ``LAYOUTS`` nor one of those that other rules speak of."""
    members = {member.config["architectures"][0] for member in family.MEMBERS}
    return architecture not in {*layouts.LAYOUTS, *members, *MULTIMODAL}


def _closest(checkpoint: Checkpoint) -> str:
    if not checkpoint.like:
        return "no known one has such layers"
    return f"known ones that come closest: {', '.join(checkpoint.like)}"


_SCALED_ELSEWHERE = ("default", "dynamic")  # M22 has the latter


def _lacking(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """Of the features of its positions, those that the backend has not. M21 has kinds that are
    not Phi's."""
    if checkpoint.model_type in rotary.PHI_TYPES and not checkpoint.longrope:
        return []
    able = backends.load(recipe.backend).rotary
    return [feature for feature in checkpoint.rotary_features if feature not in able]


def _rotary_words(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, object]:
    lacking = _lacking(recipe, checkpoint)
    keys = [feature.partition(".")[2] for feature in lacking if "." in feature]
    named = " and ".join(f"`{key}`" for key in keys)
    able = [
        name
        for name in backends.names()
        if set(checkpoint.rotary_features) <= backends.load(name).rotary
    ]
    none = 'none; set `"rope_scaling": null` and the `max_position_embeddings` trained with'
    return {
        "kind": f"`{checkpoint.scaling}`" + (f" with {named}" if keys else ""),
        "backends": ", ".join(able) or none,
    }


RULES: tuple[Rule, ...] = (
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
        "published it: the same two; for others take their text model (Phi-4-mini, "
        "Phi-4-reasoning)",
    ),
    Rule(
        id="M18",
        level="warning",
        when=lambda r, o, c: c.architecture in backends.load(r.backend).square,
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
        when=lambda r, o, c: c.architecture == kinds.PHI4 and not _is_phi4_vision(c.config),
        message="its vision part is not arranged as Phi-4-multimodal's (SigLIP, crops before "
        "the whole)",
        hint="use Phi-4-multimodal as published, or a fine-tune of it",
    ),
    Rule(
        id="M20",
        level="warning",
        when=lambda r, o, c: (
            c.architecture == kinds.PHI4 and kinds.PHI4 in backends.load(r.backend).vision
        ),
        message="what hears is left out, and the adapter that the original uses with pictures "
        "alone is merged in for "
        "good: it sees and reads, and answers on plain text differ a little from the original's",
        hint="for text alone build Phi-4-mini, the language model in it",
    ),
    Rule(
        id="M25",
        level="error",
        when=lambda r, o, c: (
            c.vocab_size <= backends.load(r.backend).picture_tokens.get(c.architecture, -1)
        ),
        message="`{recipe.backend}` looks for pictures at token {token} alone, and the model has "
        "{checkpoint.vocab_size} tokens",
        hint="choose `backend: openvino`",
        words=lambda r, o, c: {
            "token": str(backends.load(r.backend).picture_tokens[c.architecture])
        },
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
            and c.model_type not in fixups.KNOWN_TYPES
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
            c.model_type in rotary.PHI_TYPES and c.scaling != "default" and not c.longrope
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
        when=lambda r, o, c: c.model_type not in rotary.PHI_TYPES and c.scaling == "dynamic",
        message="`rope_scaling` of type `dynamic` follows the length of each text, which "
        "nothing built once can",
        hint='set `"rope_scaling": null` and the `max_position_embeddings` that the model was '
        "trained with",
    ),
    Rule(
        id="M24",
        level="error",
        when=lambda r, o, c: c.scaling not in _SCALED_ELSEWHERE and bool(_lacking(r, c)),
        message="`{recipe.backend}` is not proven to compute `rope_scaling` of type {kind}",
        hint="backends that do: {backends}",
        words=lambda r, o, c: _rotary_words(r, c),
    ),
    Rule(
        id="M23",
        level="error",
        when=lambda r, o, c: _is_unknown(c.architecture),
        message="nobody has proven builds of `{checkpoint.architecture}` here, and a runtime that "
        "takes it for another would say nothing; {closest}",
        hint="phipipe builds {known}; if the model is one of these under another name, say so in "
        "`architectures` and `model_type`",
        words=lambda r, o, c: {"closest": _closest(c), "known": ", ".join(layouts.LAYOUTS)},
    ),
    Rule(
        id="M26",
        level="error",
        when=lambda r, o, c: c.model_type in backends.load(r.backend).unable,
        message="`{recipe.backend}` builds no `{checkpoint.architecture}`: {why}",
        hint="choose {others}",
        words=lambda r, o, c: {
            "why": backends.load(r.backend).unable[c.model_type],
            "others": " or ".join(f"`backend: {name}`" for name in _able(c.model_type)),
        },
    ),
    *tokenizer_rules.RULES,
    *learned_rules.RULES,
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

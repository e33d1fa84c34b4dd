"""The tensors that a model of each architecture is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a config says that shapes follow from."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    spare_layers: int = 0  # after those, for guessing ahead
    heads: int
    kv_heads: int
    head: int
    experts: int = 0
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    norms: bool = False  # of queries and keys
    ranks: tuple[tuple[str, int], ...] = ()  # adapters that are part of the model, and their ranks
    merged: bool = False  # experts of a layer in one tensor, as transformers 5 has them in memory

    @property
    def queries(self) -> int:
        return self.heads * self.head

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``layer``: shapes of a layer's tensors by their names in it. ``ends``: those outside the
    layers, the tables of tokens aside. ``others``: where names start that belong to other parts of
    the model, and are not looked at."""

    model_type: str
    layer: Callable[[Sizes], Shapes]
    ends: Callable[[Sizes], Shapes]
    others: tuple[str, ...] = ()


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, width: int, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def _apart(s: Sizes, output: str, bias: bool, output_bias: bool) -> Shapes:
    """Attention with queries, keys and values apart."""
    for name, rows in (("q_proj", s.queries), ("k_proj", s.keys), ("v_proj", s.keys)):
        yield from _linear(f"self_attn.{name}", rows, s.hidden, bias)
    yield from _linear(f"self_attn.{output}", s.hidden, s.queries, output_bias)


def _phi(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden, bias=True)
    yield from _apart(s, "dense", bias=True, output_bias=True)
    for name in ("q_layernorm", "k_layernorm") if s.norms else ():
        yield from _norm(f"self_attn.{name}", s.head, bias=True)
    yield from _linear("mlp.fc1", s.inner, s.hidden, bias=True)
    yield from _linear("mlp.fc2", s.hidden, s.inner, bias=True)


def _phi3(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden)
    yield from _norm("post_attention_layernorm", s.hidden)
    for name, rows, columns in (
        ("self_attn.qkv_proj", s.queries + 2 * s.keys, s.hidden),
        ("self_attn.o_proj", s.hidden, s.queries),
        ("mlp.gate_up_proj", 2 * s.inner, s.hidden),
        ("mlp.down_proj", s.hidden, s.inner),
    ):
        yield f"{name}.base_layer.weight" if s.ranks else f"{name}.weight", (rows, columns)
        for adapter, rank in s.ranks:
            yield f"{name}.lora_A.{adapter}.weight", (rank, columns)
            yield f"{name}.lora_B.{adapter}.weight", (rows, rank)


def _phimoe(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden, bias=True)
    yield from _norm("post_attention_layernorm", s.hidden, bias=True)
    yield from _apart(s, "o_proj", s.attention_bias, s.attention_bias)
    if s.merged:
        yield "mlp.router.weight", (s.experts, s.hidden)
        yield "mlp.experts.gate_up_proj", (s.experts, 2 * s.inner, s.hidden)
        yield "mlp.experts.down_proj", (s.experts, s.hidden, s.inner)
        return
    yield "block_sparse_moe.gate.weight", (s.experts, s.hidden)
    for expert in range(s.experts):
        for name, shape in (
            ("w1", (s.inner, s.hidden)),
            ("w2", (s.hidden, s.inner)),
            ("w3", (s.inner, s.hidden)),
        ):
            yield f"block_sparse_moe.experts.{expert}.{name}.weight", shape


def _gated(s: Sizes) -> Shapes:
    """An MLP with its gate apart."""
    for name, rows, columns in (
        ("gate", s.inner, s.hidden),
        ("up", s.inner, s.hidden),
        ("down", s.hidden, s.inner),
    ):
        yield from _linear(f"mlp.{name}_proj", rows, columns, s.mlp_bias)


def _llama(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden)
    yield from _norm("post_attention_layernorm", s.hidden)
    yield from _apart(s, "o_proj", s.attention_bias, s.attention_bias)
    yield from _gated(s)


def _mistral(s: Sizes) -> Shapes:  # whatever a config says of biases
    yield from _llama(replace(s, attention_bias=False, mlp_bias=False))


def _qwen2(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden)
    yield from _norm("post_attention_layernorm", s.hidden)
    yield from _apart(s, "o_proj", bias=True, output_bias=False)
    yield from _gated(replace(s, mlp_bias=False))


def _qwen3(s: Sizes) -> Shapes:
    yield from _llama(replace(s, mlp_bias=False))
    for name in ("q_norm", "k_norm"):
        yield from _norm(f"self_attn.{name}", s.head)


def _gemma3(s: Sizes) -> Shapes:
    yield from _qwen3(s)
    for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
        yield from _norm(name, s.hidden)


def _last_norm(name: str, bias: bool) -> Callable[[Sizes], Shapes]:
    return lambda s: _norm(name, s.hidden, bias)


_PLAIN, _BIASED = _last_norm("model.norm", bias=False), _last_norm("model.norm", bias=True)
LAYOUTS: Mapping[str, Layout] = {
    "PhiForCausalLM": Layout(
        model_type="phi", layer=_phi, ends=_last_norm("model.final_layernorm", bias=True)
    ),
    "Phi3ForCausalLM": Layout(model_type="phi3", layer=_phi3, ends=_PLAIN),
    "PhiMoEForCausalLM": Layout(model_type="phimoe", layer=_phimoe, ends=_BIASED),
    "PhimoeForCausalLM": Layout(model_type="phimoe", layer=_phimoe, ends=_BIASED),
    "Phi3VForCausalLM": Layout(
        model_type="phi3_v",
        layer=_phi3,
        ends=_PLAIN,
        others=("model.vision_embed_tokens.", "img_processor."),
    ),
    "Phi4MMForCausalLM": Layout(
        model_type="phi4mm", layer=_phi3, ends=_PLAIN, others=("model.embed_tokens_extend.",)
    ),
    "LlamaForCausalLM": Layout(model_type="llama", layer=_llama, ends=_PLAIN),
    "MistralForCausalLM": Layout(model_type="mistral", layer=_mistral, ends=_PLAIN),
    "Qwen2ForCausalLM": Layout(model_type="qwen2", layer=_qwen2, ends=_PLAIN),
    "Qwen3ForCausalLM": Layout(model_type="qwen3", layer=_qwen3, ends=_PLAIN),
    "SmolLM3ForCausalLM": Layout(model_type="smollm3", layer=_llama, ends=_PLAIN),
    "Gemma3ForCausalLM": Layout(model_type="gemma3_text", layer=_gemma3, ends=_PLAIN),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Rotary frequencies and masks that old releases of transformers stored with the weights.
_BUFFER = re.compile(
    r"(.*\.)?(rotary_emb\.(\w*inv_freq|cos_cached|sin_cached)|position_ids|masked_bias)"
)


def sizes_of(checkpoint: Checkpoint, tensors: Iterable[str] = ()) -> Sizes:
    """What the shapes of the model's tensors follow from."""
    config = checkpoint.config
    ranks = {name: (config.get(f"{name}_lora") or {}).get("r") for name in ("vision", "speech")}
    adapted = checkpoint.architecture == "Phi4MMForCausalLM"
    return Sizes(
        vocab=checkpoint.vocab_size,
        hidden=checkpoint.hidden_size,
        inner=checkpoint.intermediate_size,
        layers=checkpoint.layers,
        spare_layers=config.get("num_nextn_predict_layers") or 0,
        heads=checkpoint.heads,
        kv_heads=checkpoint.kv_heads,
        head=checkpoint.head_size,
        experts=checkpoint.experts,
        tied=checkpoint.tied,
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        head_bias=checkpoint.model_type == "phi" or bool(config.get("lm_head_bias")),
        norms=bool(config.get("qk_layernorm")),
        ranks=tuple((name, rank) for name, rank in ranks.items() if rank) if adapted else (),
        merged=any(name.endswith(".mlp.experts.gate_up_proj") for name in tensors),
    )


def wanted(layout: Layout, sizes: Sizes) -> dict[str, Shape]:
    """Names and shapes of all tensors that a model of these ``sizes`` has, but for what
    ``layout.others`` covers."""
    shapes = {EMBEDDING: (sizes.vocab, sizes.hidden), **dict(layout.ends(sizes))}
    layer = dict(layout.layer(sizes))
    for i in range(sizes.layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if not sizes.tied:
        shapes[HEAD] = (sizes.vocab, sizes.hidden)
    if sizes.head_bias:
        shapes["lm_head.bias"] = (sizes.vocab,)
    return shapes


def is_spare(name: str) -> bool:
    """Whether a tensor is one that every tool makes itself: a buffer, or the head of a model that
    ties it."""
    return name == HEAD or is_buffer(name)


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that old releases of transformers stored with the weights."""
    return _BUFFER.fullmatch(name) is not None

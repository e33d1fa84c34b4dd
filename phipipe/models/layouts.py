"""The tensors that a model of each architecture is made of, and whether a checkpoint has these and
no others.

Every tool matches tensors by name, and does what it likes with the rest: some start a missing one
at random, some leave a surplus one out, and none says so. For architectures without a row here,
what the config counts is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.weights import INDEX, Choice, Tensor

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


def _llama(s: Sizes) -> Shapes:
    yield from _norm("input_layernorm", s.hidden)
    yield from _norm("post_attention_layernorm", s.hidden)
    yield from _apart(s, "o_proj", s.attention_bias, s.attention_bias)
    for name, rows, columns in (
        ("gate", s.inner, s.hidden),
        ("up", s.inner, s.hidden),
        ("down", s.hidden, s.inner),
    ):
        yield from _linear(f"mlp.{name}_proj", rows, columns, s.mlp_bias)


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
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = (
    "F32",
    "F16",
    "BF16",
)  # what weights are read in; others are whole numbers or need scales beside them
# Rotary frequencies and masks that old releases of transformers stored with the weights.
_BUFFER = re.compile(
    r"(.*\.)?(rotary_emb\.(\w*inv_freq|cos_cached|sin_cached)|position_ids|masked_bias)"
)
_LAYER = re.compile(r"(?:model|transformer)\.(?:layers|h)\.(\d{1,6})\..*")


def check(folder: Path, architecture: str, sizes: Sizes, tensors: Mapping[str, Tensor]) -> None:
    """Compare the ``tensors`` of the checkpoint in ``folder`` with what its config makes of
    ``architecture``.

    Raises:
        SourceError: names the first tensor that is missing, does not fit, or belongs nowhere.
    """
    layout = LAYOUTS.get(architecture)
    _refuse_dtypes(folder, tensors, layout)
    if layout is None:
        _check_counts(folder, sizes, tensors)
        return
    _check_layers(folder, sizes, tensors)
    if not sizes.merged and sizes.experts * sizes.layers > len(tensors):
        raise SourceError(
            f"`{folder / 'config.json'}` has {sizes.experts} experts in each of {sizes.layers} "
            f"layers "
            f"(`num_local_experts`); the weights have {len(tensors)} tensors in all",
            hint=_OTHER_HINT,
        )
    expected = wanted(layout, sizes)
    extra = [
        n
        for n in tensors
        if n not in expected and not n.startswith(layout.others or "\0") and not _is_spare(n)
    ]
    missing = [n for n in expected if n not in tensors and n != HEAD]
    if missing or extra:
        _refuse_names(folder, architecture, missing, extra)
    if HEAD not in tensors and HEAD in expected:
        raise SourceError(
            f"`{folder}` has no head (`{HEAD}`), and its `config.json` does not tie one to the "
            f"embedding",
            hint='take the whole checkpoint; or set `"tie_word_embeddings": true`, if the model '
            "was trained so",
        )
    for name, shape in {**expected, HEAD: (sizes.vocab, sizes.hidden)}.items():
        if name in tensors:
            _check_shape(folder, tensors[name], shape)


def check_index(
    folder: Path, architecture: str, choice: Choice, tensors: Mapping[str, Tensor]
) -> None:
    """Refuse an index that leaves out what lies in the files it names: some tools would not find
    it.

    Raises:
        SourceError: names the tensor.
    """
    if not choice.places or architecture not in LAYOUTS:
        return
    for name, tensor in tensors.items():
        if name not in choice.places and not _is_spare(name):
            raise SourceError(
                f"`{folder / INDEX}` does not name `{name}`, which lies in `{tensor.file}`",
                hint="take the index and all its files from one save",
            )


def wanted(layout: Layout, sizes: Sizes) -> dict[str, Shape]:
    """Names and shapes of all tensors that a model of these ``sizes`` has, but for what
    ``layout.others`` covers."""
    found = {EMBEDDING: (sizes.vocab, sizes.hidden), **dict(layout.ends(sizes))}
    layer = dict(layout.layer(sizes))
    found |= {
        f"model.layers.{i}.{name}": shape
        for i in range(sizes.layers)
        for name, shape in layer.items()
    }
    if not sizes.tied:
        found[HEAD] = (sizes.vocab, sizes.hidden)
    if sizes.head_bias:
        found["lm_head.bias"] = (sizes.vocab,)
    return found


def _is_spare(name: str) -> bool:
    """Whether a tensor is one that every tool makes itself: a buffer, or the head of a model that
    ties it."""
    return name == HEAD or _BUFFER.fullmatch(name) is not None


def _refuse_dtypes(folder: Path, tensors: Mapping[str, Tensor], layout: Layout | None) -> None:
    """Weights in other than the usual dtypes are quantized, or nothing reads them."""
    for tensor in tensors.values():
        usual = tensor.dtype in FLOATS or (tensor.dtype == "F64" and layout is None)
        if not usual and not _BUFFER.fullmatch(tensor.name) and tensor.elements > 1:
            if layout is None and not tensor.dtype.startswith("F"):
                continue
            if layout and tensor.name.startswith(layout.others or "\0"):
                continue
            raise SourceError(
                f"`{folder / tensor.file}` stores `{tensor.name}` as {tensor.dtype}; weights "
                f"are read from "
                f"{', '.join(FLOATS)}: the checkpoint is quantized, or no language model's",
                hint="give the original in 16 or 32 bits",
            )


def _check_layers(folder: Path, sizes: Sizes, tensors: Iterable[str]) -> None:
    numbers = {int(found[1]) for name in tensors if (found := _LAYER.fullmatch(name))}
    if not numbers:
        return
    if surplus := [n for n in numbers if n >= sizes.layers + sizes.spare_layers]:
        name = next(t for t in tensors if (m := _LAYER.fullmatch(t)) and int(m[1]) == min(surplus))
        raise SourceError(
            f"the weights in `{folder}` have {len(numbers)} layers, `config.json` has "
            f"{sizes.layers} "
            f"(`num_hidden_layers`): `{name}` belongs to none of them",
            hint=_OTHER_HINT,
        )
    if lacking := set(range(sizes.layers)) - numbers:
        raise SourceError(
            f"the weights in `{folder}` have {len(numbers)} layers, `config.json` has "
            f"{sizes.layers} "
            f"(`num_hidden_layers`): the tensors of layer {min(lacking)} are missing "
            f"(`model.layers.{min(lacking)}.…`)",
            hint=_OTHER_HINT,
        )


def _check_counts(folder: Path, sizes: Sizes, tensors: Mapping[str, Tensor]) -> None:
    """Layers and width of the embedding, by the names that most architectures use."""
    _check_layers(folder, sizes, tensors)
    for name in (EMBEDDING, "transformer.wte.weight"):
        if name in tensors:
            _check_shape(folder, tensors[name], (sizes.vocab, sizes.hidden))


def _check_shape(folder: Path, tensor: Tensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise SourceError(
            f"`{folder / tensor.file}` and `config.json` are of different models: "
            f"`{tensor.name}` is "
            f"{_words(tensor.shape)}, the config makes it {_words(shape)}",
            hint=_OTHER_HINT,
        )


def _words(shape: Shape) -> str:
    return " × ".join(map(str, shape)) or "a single number"


_HINTS = (
    (
        re.compile(r"lora_|base_layer|modules_to_save"),
        "a LoRA adapter was not merged: merge it (peft's `merge_and_unload`) and save the whole "
        "model",
    ),
    (
        re.compile(
            r"^(base_model\.model|module|_orig_mod|model|language_model|transformer)\.(model\.|lm_head\.)"
        ),
        "the model was saved from inside a wrapper: save it again without that "
        "(`unwrap_model`), or rename its tensors",
    ),
    (
        re.compile(r"^(v_head|medusa\w*|eagle\w*|mtp\w*)\.|\.(eh_proj|enorm|hnorm)\."),
        "a head was trained beside the model, which no runtime here takes: save the model "
        "without it",
    ),
    (
        re.compile(r"\.[kv]_scale$"),
        "they are scales of a quantized cache: give the original in 16 bits",
    ),
    (
        re.compile(r"\bvision|\bimg_|\baudio"),
        "the model has more than text: `architectures` must name the class that does",
    ),
    (
        re.compile(r"\.(q|k|v|gate|up)_proj\."),
        "they have Llama's layout: save the model again in its own",
    ),
    (
        re.compile(r"\.(qweight|absmax|quant_\w+|scales|biases|qzeros)"),
        "it is quantized: give the original",
    ),
    (
        re.compile(r"^(layers|embed_tokens)\b|^score\."),
        "the model was saved without its head: save it as a causal LM",
    ),
    (
        re.compile(r"\.bias$"),
        "the architecture has no such biases; `config.json` must name the one that was trained",
    ),
)
_OTHER_HINT = "take `config.json` and weights from one place"


def _refuse_names(
    folder: Path, architecture: str, missing: list[str], extra: list[str]
) -> NoReturn:
    said = (
        [
            f"{_some(extra)} {_belong(extra)} to no part of {architecture}, and tools would "
            f"leave them out"
        ]
        if extra
        else []
    )
    said += [f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    odd = extra or missing
    hint = next((hint for pattern, hint in _HINTS if any(map(pattern.search, odd))), _OTHER_HINT)
    raise SourceError(
        f"the weights in `{folder}` are not those of its `config.json`: {'; '.join(said)}",
        hint=hint,
    )


def _belong(names: list[str]) -> str:
    return "belongs" if len(names) == 1 else "belong"


def _some(names: list[str]) -> str:
    """Up to two of ``names``, and how many more there are."""
    told = [f"`{json_files.shown(name)}`" for name in names[:2]]
    more = len(names) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "") if more else " and ".join(told)

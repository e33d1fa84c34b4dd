"""Whether a checkpoint has the tensors of its architecture, and no others.

Every tool matches tensors by name, and does what it likes with the rest: some start a missing one
at random, some leave a surplus one out, and none says so. For architectures without a layout, what
the config counts is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.layouts import (
    EMBEDDING,
    HEAD,
    LAYOUTS,
    Layout,
    Shape,
    Sizes,
    is_buffer,
    is_spare,
    wanted,
)
from phipipe.models.weight_files import INDEX, Choice
from phipipe.models.weights import Tensor

# What weights are read in; others are whole numbers or need scales beside them.
FLOATS = ("F32", "F16", "BF16")
_LAYER = re.compile(r"(?:model|transformer)\.(?:layers|h)\.(\d{1,6})\..*")
_HINTS = (
    (
        re.compile(r"lora_|base_layer|modules_to_save"),
        "a LoRA adapter was not merged: merge it (peft's `merge_and_unload`) and save the whole "
        "model",
    ),
    (
        re.compile(
            r"^(base_model\.model|module|_orig_mod|model|language_model|transformer)"
            r"\.(model\.|lm_head\.)"
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
        if n not in expected and not n.startswith(layout.others or "\0") and not is_spare(n)
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
        if name not in choice.places and not is_spare(name):
            raise SourceError(
                f"`{folder / INDEX}` does not name `{name}`, which lies in `{tensor.file}`",
                hint="take the index and all its files from one save",
            )


def _refuse_dtypes(folder: Path, tensors: Mapping[str, Tensor], layout: Layout | None) -> None:
    """Weights in other than the usual dtypes are quantized, or nothing reads them."""
    for tensor in tensors.values():
        usual = tensor.dtype in FLOATS or (tensor.dtype == "F64" and layout is None)
        if not usual and not is_buffer(tensor.name) and tensor.elements > 1:
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
    """Whether the layers by their numbers are those that ``config.json`` counts."""
    first: dict[int, str] = {}  # number of a layer → its first tensor
    for name in tensors:
        if match := _LAYER.fullmatch(name):
            first.setdefault(int(match[1]), name)
    if not first:
        return
    counts = (
        f"the weights in `{folder}` have {len(first)} layers, `config.json` has {sizes.layers} "
        f"(`num_hidden_layers`)"
    )
    if surplus := [number for number in first if number >= sizes.layers + sizes.spare_layers]:
        name = first[min(surplus)]
        raise SourceError(f"{counts}: `{name}` belongs to none of them", hint=_OTHER_HINT)
    if lacking := set(range(sizes.layers)) - first.keys():
        raise SourceError(
            f"{counts}: the tensors of layer {min(lacking)} are missing "
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


def _refuse_names(
    folder: Path, architecture: str, missing: list[str], extra: list[str]
) -> NoReturn:
    words = []
    if extra:
        belong = "belongs" if len(extra) == 1 else "belong"
        what = f"{belong} to no part of {architecture}, and tools would leave them out"
        words.append(f"{_some(extra)} {what}")
    if missing:
        words.append(f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    odd = extra or missing
    hint = next((hint for pattern, hint in _HINTS if any(map(pattern.search, odd))), _OTHER_HINT)
    raise SourceError(
        f"the weights in `{folder}` are not those of its `config.json`: {'; '.join(words)}",
        hint=hint,
    )


def _some(names: list[str]) -> str:
    """Up to two of ``names``, and how many more there are."""
    shown = [f"`{json_files.shown(name)}`" for name in names[:2]]
    more = len(names) - len(shown)
    return f"{', '.join(shown)} and {more} more" if more else " and ".join(shown)

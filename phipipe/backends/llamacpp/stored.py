"""What a GGUF of ours really holds, compared with what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from phipipe.backends.llamacpp.types import FLOATS
from phipipe.errors import StepFailed
from phipipe.steps import Params


class Tensor(NamedTuple):
    """One entry of the header: ggml's type name, and the shape as ggml counts it (rows last)."""

    name: str
    type: str
    shape: tuple[int, ...]


def linears(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The matrices that are multiplied with activations: all but the embedding."""
    return [t for t in tensors if len(t.shape) > 1 and t.name != "token_embd.weight"]


def check_floats(tensors: Sequence[Tensor], kind: str) -> None:
    """Every matrix is stored as ``kind``.

    Raises:
        StepFailed: one is not, or there are none.
    """
    matrices = [t for t in tensors if len(t.shape) > 1]
    wrong = [t for t in matrices if t.type != kind]
    if wrong or not matrices:
        reason = f"`{wrong[0].name}` is {wrong[0].type}" if wrong else "it has no matrix"
        raise StepFailed(f"the conversion is not {kind}: {reason}")


def check_quantized(
    tensors: Sequence[Tensor],
    kind: str,
    params: Params,
    mapped: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Layers are stored in ``kind``, in what the options name, or first of all in what ``mapped``
    names; nothing was left at 16 bits unasked.

    llama.cpp's mixed types keep some layers in others; ``kind`` must then still be the one of most
    weights that it did not raise.

    Raises:
        StepFailed: something else was written.
    """
    matrices = {t.name: t for t in tensors if len(t.shape) > 1}
    asked = {**_asked(matrices, params), **mapped}
    for name, wanted in asked.items():
        if matrices[name].type != wanted:
            raise StepFailed(
                f"`{name}` was asked for in {wanted}, and llama.cpp stored {matrices[name].type}"
            )
    left = [t for t in matrices.values() if t.type in FLOATS and t.name not in asked]
    if left:
        raise StepFailed(f"llama.cpp left `{left[0].name}` in {left[0].type}")
    layers = [t for t in matrices.values() if t.name.startswith("blk.") and t.name not in asked]
    strays = [t for t in layers if t.type != kind] if params["pure"] else []
    if strays or (layers and not any(t.type == kind for t in layers)):
        stray = (strays or layers)[0]
        raise StepFailed(
            f"asked for {params['type']}, but `{stray.name}` is stored in {stray.type}"
        )


def _asked(matrices: dict[str, Tensor], params: Params) -> dict[str, str]:
    """Tensor name → type, for what the options name one by one; llama.cpp's order of precedence."""
    asked = {}
    for name in matrices:
        for pattern, kind in params["tensors"]:
            if re.search(pattern, name):
                asked[name] = kind
                break
    if params["embedding_type"]:
        asked["token_embd.weight"] = params["embedding_type"]
    if params["output_type"]:
        name = "output.weight" if "output.weight" in matrices else "token_embd.weight"
        asked.setdefault(name, params["output_type"])
        asked[name] = params["output_type"] if name == "output.weight" else asked[name]
    return asked

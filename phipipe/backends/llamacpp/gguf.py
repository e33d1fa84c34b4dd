"""What a GGUF of ours really holds: read back from its header, and compared with what was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from phipipe.errors import StepFailed

if TYPE_CHECKING:
    from phipipe.steps import Params

FLOATS = ("F32", "F16", "BF16")


class Tensor(NamedTuple):
    """One entry of the header: ggml's type name, and the shape as ggml counts it (rows last)."""

    name: str
    type: str
    shape: tuple[int, ...]


def tensors(path: Path) -> Sequence[Tensor]:
    """All tensors of a file that phipipe's own steps wrote (the reader hangs on hostile ones)."""
    import gguf

    reader = gguf.GGUFReader(path)
    return [
        Tensor(t.name, t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in reader.tensors
    ]


def linears(path: Path) -> Sequence[Tensor]:
    """The matrices that are multiplied with activations: all but the embedding."""
    return [t for t in tensors(path) if len(t.shape) > 1 and t.name != "token_embd.weight"]


def check_floats(path: Path, kind: str) -> None:
    """Every matrix is stored as ``kind``.

    Raises:
        StepFailed: one is not, or there are none.
    """
    matrices = [t for t in tensors(path) if len(t.shape) > 1]
    wrong = [t for t in matrices if t.type != kind]
    if wrong or not matrices:
        found = f"`{wrong[0].name}` is {wrong[0].type}" if wrong else "it has no matrix"
        raise StepFailed(f"the conversion is not {kind}: {found}")


def check_quantized(path: Path, kind: str, params: Params) -> None:
    """Layers are stored in ``kind`` or in what the options name; nothing was left at 16 bits
    unasked.

    llama.cpp's mixed types keep some layers in others; ``kind`` must then still be the one of most
    weights that it did not raise.

    Raises:
        StepFailed: something else was written.
    """
    found = {t.name: t for t in tensors(path) if len(t.shape) > 1}
    asked = _asked(found, params)
    for name, wanted in asked.items():
        if found[name].type != wanted:
            raise StepFailed(
                f"`{name}` was asked for in {wanted}, and llama.cpp stored {found[name].type}"
            )
    left = [t for t in found.values() if t.type in FLOATS and t.name not in asked]
    if left:
        raise StepFailed(f"llama.cpp left `{left[0].name}` in {left[0].type}")
    layers = [t for t in found.values() if t.name.startswith("blk.") and t.name not in asked]
    strays = [t for t in layers if t.type != kind] if params["pure"] else []
    if strays or (layers and not any(t.type == kind for t in layers)):
        stray = (strays or layers)[0]
        raise StepFailed(
            f"asked for {params['type']}, but `{stray.name}` is stored in {stray.type}"
        )


def _asked(found: dict[str, Tensor], params: Params) -> dict[str, str]:
    """Tensor name → type, for what the options name one by one; llama.cpp's order of precedence."""
    asked = {}
    for name in found:
        for pattern, kind in params["tensors"]:
            if re.search(pattern, name):
                asked[name] = kind
                break
    if params["embedding_type"]:
        asked["token_embd.weight"] = params["embedding_type"]
    if params["output_type"]:
        name = "output.weight" if "output.weight" in found else "token_embd.weight"
        asked.setdefault(name, params["output_type"])
        asked[name] = params["output_type"] if name == "output.weight" else asked[name]
    return asked

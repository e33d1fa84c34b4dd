"""Checkpoint → quantized GGUF, tensor by tensor, by ggml's own rounding in llama.cpp's own choice
of types; read back and compared with what was asked.

The file is byte by byte what llama.cpp makes of the conversion in floats, which is never written.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phipipe.backends.llamacpp import IMATRIX, MODEL, MODELFILE, fill, ggml, learned, stored
from phipipe.backends.llamacpp.choice import Vectors, chosen
from phipipe.backends.llamacpp.fill import Filling
from phipipe.backends.llamacpp.header import tensors
from phipipe.backends.llamacpp.names import EMBEDDING, OUTPUT, tensor_of
from phipipe.backends.llamacpp.rows import Outline, Rows
from phipipe.backends.llamacpp.stored import Tensor
from phipipe.backends.llamacpp.types import TYPES
from phipipe.errors import RecipeError, StepFailed
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["outline"]`` of ``inputs["source"]``, a checkpoint, to ``params["type"]``.

    ``inputs["imatrix"]`` is optional: float32 vectors by tensor name. ``params["widths"]`` (none):
    matrix → ggml's type, the precision map. Where ``inputs["weights"]`` is there, the matrices are
    those of that lattice. The file's tensors are verified before the step counts as done.

    Raises:
        RecipeError: a pattern of ``params["tensors"]`` matches no tensor.
        StepFailed: llama.cpp refused, or chose something else than asked; a weight is no finite
            number.
    """
    outline, target = Outline(inputs["outline"], inputs["source"]), out / MODEL
    mapped = {tensor_of(name): kind for name, kind in params.get("widths", {}).items()}
    there = {tensor.name for tensor in outline.tensors}
    lost = set(mapped) - there
    if lost:
        raise StepFailed(f"the conversion has no `{min(lost)}`, which the map names")
    if "weights" in inputs:
        learned.write(outline, target, inputs["weights"], inputs["source"])
    else:
        _check_patterns(outline, params)
        vectors = _vectors(outline, inputs["imatrix"] / IMATRIX) if "imatrix" in inputs else {}
        write(outline, target, _with_map(params, mapped, OUTPUT not in there), vectors)
    shutil.copyfile(inputs["outline"] / MODELFILE, out / MODELFILE)
    stored.check_quantized(tensors(target), TYPES[params["type"]].tensor, params, mapped)


def write(outline: Outline, target: Path, params: Params, vectors: Vectors) -> None:
    """The GGUF ``target`` as llama.cpp would make it of ``outline``, tensor by tensor."""
    settings, kinds = chosen(outline, params, vectors, target.parent)
    rows = {one.tensor.name: one for one in outline.rows}
    fillings = [_filling(rows[tensor.name], tensor, vectors) for tensor in kinds]
    fill.write(target, settings, fillings)


def _filling(one: Rows, stored: Tensor, vectors: Vectors) -> Filling:
    """Rows of ``one``, rounded to the type of ``stored``; only checked, where they have it
    already."""
    importance, kind = vectors.get(stored.name), stored.type

    def make(start: int, end: int) -> ggml.Raw:
        if kind == one.tensor.type:
            return _finite(one, one.raw(start, end), kind)
        floats = one.floats(start, end)
        _finite(one, floats.view(np.uint8), "F32")
        return _finite(one, ggml.quantized(floats, kind, importance), kind)

    return Filling(stored, one.shape[0], make, one.announce)


def _finite(one: Rows, raw: ggml.Raw, kind: str) -> ggml.Raw:
    if not ggml.is_finite(raw, kind):
        raise StepFailed(f"`{one.tensor.name}` has weights that are no finite numbers")
    return raw


def _with_map(params: Params, mapped: Mapping[str, str], tied: bool) -> Params:
    """``params`` in which the map's types come first, in the words that llama.cpp has for them:
    options of their own for the two matrices outside of the layers, patterns for all others.
    ``tied``: both are one."""
    rest = {name: kind for name, kind in mapped.items() if name not in (EMBEDDING, OUTPUT)}
    patterns = [[f"^{re.escape(name)}$", kind] for name, kind in rest.items()]
    named_twice = tied and EMBEDDING in mapped
    return {
        **params,
        "tensors": [*patterns, *params["tensors"]],
        "embedding_type": mapped.get(EMBEDDING, params["embedding_type"]),
        "output_type": None if named_twice else mapped.get(OUTPUT, params["output_type"]),
    }


def _check_patterns(outline: Outline, params: Params) -> None:
    names = [tensor.name for tensor in outline.tensors]
    for pattern, _ in params["tensors"]:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise RecipeError(
                f"`quantize.tensors: {pattern}` is found in no tensor's name",
                hint=f"one is `{near[0]}`",
            )


def _vectors(outline: Outline, path: Path) -> Vectors:
    """The importance of every linear's inputs, by tensor name.

    Raises:
        StepFailed: a tensor has no vector; llama.cpp would quantize it without a word.
    """
    vectors = dict(np.load(path))
    missing = [t.name for t in stored.linears(outline.tensors) if t.name not in vectors]
    if missing:
        raise StepFailed(f"the importance matrix has nothing for `{missing[0]}`")
    return {name: np.ascontiguousarray(row, np.float32) for name, row in vectors.items()}

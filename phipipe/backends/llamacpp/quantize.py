"""llama.cpp's quantization, in this process, read back and compared with what was asked."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import _logger

from phipipe import progress
from phipipe.backends.llamacpp import IMATRIX, MODEL, MODELFILE, learned, stored
from phipipe.backends.llamacpp.header import tensors
from phipipe.backends.llamacpp.names import EMBEDDING, OUTPUT, tensor_of
from phipipe.backends.llamacpp.session import threads
from phipipe.backends.llamacpp.types import TYPES
from phipipe.errors import RecipeError, StepFailed
from phipipe.steps import Inputs, Params

TENSOR = re.compile(rb"\s*\[\s*(\d+)/\s*(\d+)\]")  # how a line about a tensor begins


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, a GGUF in 16 or 32 bits, to ``params["type"]``.

    ``inputs["imatrix"]`` is optional: float32 vectors by tensor name. ``params["widths"]`` (none):
    matrix → ggml's type, the precision map. Where ``inputs["weights"]`` is there, the matrices are
    those of that lattice, made of the checkpoint ``inputs["source"]``. The file's tensors are
    verified before the step counts as done.

    Raises:
        RecipeError: a pattern of ``params["tensors"]`` matches no tensor.
        StepFailed: llama.cpp refused, or stored something else than asked.
    """
    source, target = inputs["model"] / MODEL, out / MODEL
    mapped = {tensor_of(name): kind for name, kind in params.get("widths", {}).items()}
    there = {tensor.name for tensor in tensors(source)}
    lost = set(mapped) - there
    if lost:
        raise StepFailed(f"the conversion has no `{min(lost)}`, which the map names")
    if "weights" in inputs:
        learned.write(source, target, inputs["weights"], inputs["source"])
    else:
        _check_patterns(source, params)
        vectors = _vectors(source, inputs["imatrix"] / IMATRIX) if "imatrix" in inputs else {}
        _quantize(source, target, _with_map(params, mapped, OUTPUT not in there), vectors)
    shutil.copyfile(inputs["model"] / MODELFILE, out / MODELFILE)
    stored.check_quantized(tensors(target), TYPES[params["type"]].tensor, params, mapped)


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


def _check_patterns(source: Path, params: Params) -> None:
    names = [tensor.name for tensor in tensors(source)]
    for pattern, _ in params["tensors"]:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise RecipeError(
                f"`quantize.tensors: {pattern}` is found in no tensor's name",
                hint=f"one is `{near[0]}`",
            )


def _vectors(source: Path, path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The importance of every linear's inputs, by tensor name.

    Raises:
        StepFailed: a tensor has no vector; llama.cpp would quantize it without a word.
    """
    vectors = dict(np.load(path))
    missing = [t.name for t in stored.linears(tensors(source)) if t.name not in vectors]
    if missing:
        raise StepFailed(f"the importance matrix has nothing for `{missing[0]}`")
    return {name: np.ascontiguousarray(row, np.float32) for name, row in vectors.items()}


def _quantize(
    source: Path, target: Path, params: Params, vectors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Have llama.cpp write ``source`` to ``target``; it reads our arrays until it returns."""
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{params['type']}")
    asked.nthread = threads()
    asked.pure = params["pure"]
    if params["output_type"]:
        asked.output_tensor_type = _number(params["output_type"])
    if params["embedding_type"]:
        asked.token_embedding_type = _number(params["embedding_type"])
    chosen = [(pattern.encode(), _number(kind)) for pattern, kind in params["tensors"]]
    overrides = (llama_cpp.llama_model_tensor_override * (len(chosen) + 1))(*chosen, (None, 0))
    if chosen:
        asked.tt_overrides = overrides
    rows = [(name.encode(), _pointer(row), len(row)) for name, row in vectors.items()]
    importance = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
    if rows:
        asked.imatrix = importance
    with _heard():
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(asked)
        )
    if code:
        raise StepFailed(
            f"llama.cpp could not quantize to {params['type']} (code {code}); its words are in "
            f"the log"
        )


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """While this lasts, what llama.cpp logs of each tensor is progress, too."""
    usual = _logger.llama_log_callback

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        if found := TENSOR.match(text):
            progress.report(int(found[1]), int(found[2]), "tensors")
        usual(level, text, data)

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(usual, ctypes.c_void_p(0))


def _number(kind: str) -> int:
    """ggml's number for the tensor type ``kind``."""
    return int(gguf.GGMLQuantizationType[kind])  # llama_cpp has no name for BF16


def _pointer(row: npt.NDArray[np.float32]) -> ctypes._Pointer[ctypes.c_float]:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

"""llama.cpp's own choice of a type for each tensor, and of what else a quantized file says.

It depends on a tensor's name and the length of its rows, on the model's settings, on the options
and on whether there is an importance matrix; never on values, nor on how many rows there are
(``llama_tensor_get_type`` in its src/llama-quant.cpp). So llama.cpp quantizes a file with two rows
of each matrix, and what it writes is the answer. It refuses what it would refuse of the whole.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from phipipe.backends.llamacpp import fill
from phipipe.backends.llamacpp.fill import Filling
from phipipe.backends.llamacpp.ggml import number
from phipipe.backends.llamacpp.header import Header, Settings
from phipipe.backends.llamacpp.rows import Outline, Rows
from phipipe.backends.llamacpp.session import threads
from phipipe.backends.llamacpp.stored import Tensor
from phipipe.errors import StepFailed
from phipipe.steps import Params

FEW = 2  # rows: with a single one, a matrix would be a vector

Vectors = Mapping[str, npt.NDArray[np.float32]]


def chosen(
    outline: Outline, params: Params, vectors: Vectors, scratch: Path
) -> tuple[Settings, list[Tensor]]:
    """What the header of a file in ``params["type"]`` says, and its tensors in llama.cpp's order
    and types; ``vectors``: the importance of each tensor's inputs, if any. ``scratch``: a folder
    for small files.

    Raises:
        StepFailed: llama.cpp refuses.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".quantize-") as folder:
        few, small = Path(folder) / "few.gguf", Path(folder) / "small.gguf"
        fillings = [_few(one) for one in outline.rows]
        fill.write(few, outline.header.settings(), fillings, told=False)
        quantize(few, small, params, vectors)
        settings, kinds = _read(small)
        return settings, _whole(outline.tensors, kinds)


def _read(path: Path) -> tuple[Settings, dict[str, str]]:
    """A file's settings and the types of its tensors; nothing of it stays mapped, so that Windows
    removes it."""
    header = Header(path)
    return header.settings(), {tensor.name: tensor.type for tensor in header.tensors}


def _few(one: Rows) -> Filling:
    """The first rows of a matrix; all of anything else."""
    columns, *rows = one.tensor.shape
    if len(rows) != 1:
        return Filling(one.tensor, one.shape[0], one.raw)
    count = min(FEW, rows[0])
    return Filling(Tensor(one.tensor.name, one.tensor.type, (columns, count)), count, one.raw)


def _whole(tensors: Sequence[Tensor], kinds: Mapping[str, str]) -> list[Tensor]:
    """``tensors`` in the order of ``kinds``, with the type that each has there; as ggml counts
    dimensions, which leaves the last ones out where they are 1."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    if shapes.keys() != kinds.keys():
        raise StepFailed("llama.cpp wrote other tensors than the conversion has")
    return [Tensor(name, kind, _counted(shapes[name])) for name, kind in kinds.items()]


def _counted(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def quantize(source: Path, target: Path, params: Params, vectors: Vectors) -> None:
    """Have llama.cpp quantize ``source`` to ``target``; it reads our arrays until it returns.

    Raises:
        StepFailed: it refuses.
    """
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{params['type']}")
    asked.nthread = threads()
    asked.pure = params["pure"]
    if params["output_type"]:
        asked.output_tensor_type = number(params["output_type"])
    if params["embedding_type"]:
        asked.token_embedding_type = number(params["embedding_type"])
    named = [(pattern.encode(), number(kind)) for pattern, kind in params["tensors"]]
    overrides = (llama_cpp.llama_model_tensor_override * (len(named) + 1))(*named, (None, 0))
    if named:
        asked.tt_overrides = overrides
    rows = [(name.encode(), _pointer(row), len(row)) for name, row in vectors.items()]
    importance = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
    if rows:
        asked.imatrix = importance
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(asked)
    )
    if code:
        raise StepFailed(
            f"llama.cpp could not quantize to {params['type']} (code {code}); its words are in "
            f"the log"
        )


def _pointer(row: npt.NDArray[np.float32]) -> ctypes._Pointer[ctypes.c_float]:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

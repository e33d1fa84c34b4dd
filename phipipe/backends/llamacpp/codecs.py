"""What a GGUF holds of a weight: ggml's own rounding, called on rows."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import gguf
import numpy as np
import numpy.typing as npt
from llama_cpp import _ggml
from llama_cpp._ctypes_extensions import load_shared_library

from phipipe.backends.llamacpp.options import tensor_type
from phipipe.backends.llamacpp.types import WEIGHED, float_type
from phipipe.backends.widths import Stored
from phipipe.errors import StepFailed
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Floats


def codec(params: Params) -> Codec:
    """Types as the map has them. Errors are weighed by the importance where ``params["imatrix"]``
    says so or the type needs it, unless it is zero throughout: as in llama.cpp, where the embedding
    has none."""
    own = float_type(params["source_dtype"])
    library = load_shared_library("ggml-base", _ggml.libggml_base_path)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def held(weight: Floats, stored: Stored, importance: Floats) -> Floats:
        name = tensor_type(stored, own)
        weighed = bool(importance.any()) and (params["imatrix"] or name in WEIGHED)
        if name in WEIGHED and not weighed:
            raise StepFailed(f"{name} needs an importance matrix")
        raw = _chunk(library, weight, name, importance if weighed else None)
        return np.asarray(gguf.dequantize(raw, gguf.GGMLQuantizationType[name]), np.float32)

    return held


def _chunk(
    library: ctypes.CDLL, weight: Floats, name: str, importance: Floats | None
) -> npt.NDArray[np.uint8]:
    """The blocks of ggml's type ``name``, uint8 [rows, bytes of a row].

    Raises:
        StepFailed: a block does not end where a row does. (ggml would end the process.)
    """
    kind = gguf.GGMLQuantizationType[name]
    rows, columns = weight.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % block:
        raise StepFailed(f"{name} has blocks of {block} weights, and rows have {columns}")
    floats = np.ascontiguousarray(weight, np.float32)
    drive = None if importance is None else np.ascontiguousarray(importance, np.float32)
    raw = np.empty((rows, columns // block * size), np.uint8)
    library.ggml_quantize_chunk(
        ctypes.c_int(kind),
        ctypes.c_void_p(floats.ctypes.data),
        ctypes.c_void_p(raw.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        None if drive is None else ctypes.c_void_p(drive.ctypes.data),
    )
    return raw

"""ggml's own rounding, called on rows."""

from __future__ import annotations

import ctypes
from functools import cache

import gguf
import numpy as np
import numpy.typing as npt
from llama_cpp import _ggml
from llama_cpp._ctypes_extensions import load_shared_library

from phipipe.backends.llamacpp.header import row_bytes
from phipipe.errors import StepFailed

Floats = npt.NDArray[np.float32]
Raw = npt.NDArray[np.uint8]


@cache
def _library() -> ctypes.CDLL:
    library: ctypes.CDLL = load_shared_library("ggml-base", _ggml.libggml_base_path)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


def number(kind: str) -> int:
    """ggml's number for the tensor type ``kind``."""
    return int(gguf.GGMLQuantizationType[kind])  # llama_cpp has no name for BF16


def quantized(weight: Floats, kind: str, importance: Floats | None = None) -> Raw:
    """``weight``, float32 [rows, columns], as blocks of ``kind``, uint8 [rows, bytes of a row].

    Rows do not depend on each other, and other threads run meanwhile. ``importance``: float32
    [columns], the weight of each column's errors.

    Raises:
        StepFailed: a block does not end where a row does; the importance is of other columns.
    """
    rows, columns = weight.shape
    if importance is not None and importance.shape != (columns,):
        raise StepFailed(f"there is importance for {importance.size} of {columns} columns")
    raw = np.empty((rows, row_bytes(kind, columns)), np.uint8)
    floats = np.ascontiguousarray(weight, np.float32)
    drive = None if importance is None else np.ascontiguousarray(importance, np.float32)
    _library().ggml_quantize_chunk(
        ctypes.c_int(number(kind)),
        ctypes.c_void_p(floats.ctypes.data),
        ctypes.c_void_p(raw.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        None if drive is None else ctypes.c_void_p(drive.ctypes.data),
    )
    return raw


def is_finite(raw: Raw, kind: str) -> bool:
    """Whether all numbers in ``raw``, contiguous blocks of ``kind``, are finite (ggml's check: of
    quantized blocks it looks at the scales)."""
    return bool(
        _library().ggml_validate_row_data(
            ctypes.c_int(number(kind)),
            ctypes.c_void_p(raw.ctypes.data),
            ctypes.c_size_t(raw.nbytes),
        )
    )

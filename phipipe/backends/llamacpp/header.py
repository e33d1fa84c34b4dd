"""The header of a GGUF, read and written (ggml, docs/gguf.md).

Only of files that phipipe's own steps wrote; ``models.gguf_files`` reads those of strangers. gguf's
own reader makes an object of each token and merge: a second and more for a file, several times in a
step.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from phipipe.backends.llamacpp.stored import Tensor
from phipipe.errors import StepFailed

ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT  # bytes, of each tensor's data
_FIRST = 24  # bytes before the settings: magic, version, number of tensors and of settings
_FILE_TYPE = "general.file_type"
# Bytes of a setting's value by its type; texts (8) and lists (9) have lengths of their own.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _LIST = 4, 8, 9


class Settings(NamedTuple):
    """All that a header says besides its tensors, as bytes, and how many settings these are."""

    raw: bytes
    number: int


class _Cursor:
    """Where reading stands in the bytes ``data``."""

    def __init__(self, data: npt.NDArray[np.uint8], at: int) -> None:
        self.data, self.at = data.data, at

    def number(self, form: str = "<Q") -> int:
        (found,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(found)

    def text(self) -> str:
        length = self.number()
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8")

    def skip(self, kind: int) -> None:
        """Past a value."""
        if kind == _TEXT:
            self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
        elif kind == _LIST:
            inner, count = self.number("<I"), self.number()
            if inner in _BYTES:
                self.at += count * _BYTES[inner]
            else:
                for _ in range(count):
                    self.skip(inner)
        else:
            self.at += _BYTES[kind]


class Header:
    """The header of a file; ``tensors`` are in the order in which it lists them."""

    def __init__(self, path: Path) -> None:
        self._data = np.memmap(path, np.uint8, "r")
        cursor = _Cursor(self._data, 8)
        tensors, self._number = cursor.number(), cursor.number()
        self._values: dict[str, tuple[int, int]] = {}  # type of the value, and where it begins
        for _ in range(self._number):
            key, kind = cursor.text(), cursor.number("<I")
            self._values[key] = (kind, cursor.at)
            cursor.skip(kind)
        self._end = cursor.at
        self.tensors: list[Tensor] = []
        self._starts: dict[str, int] = {}
        for _ in range(tensors):
            name, dimensions = cursor.text(), cursor.number("<I")
            shape = tuple(cursor.number() for _ in range(dimensions))
            kind = cursor.number("<I")
            self.tensors.append(Tensor(name, gguf.GGMLQuantizationType(kind).name, shape))
            self._starts[name] = cursor.number()
        self._first = padded(cursor.at)

    def text(self, key: str) -> str:
        """The text, or the whole number as text, that ``key`` is set to.

        Raises:
            StepFailed: it is set to nothing of these kinds.
        """
        kind, at = self._values.get(key, (_LIST, 0))
        cursor = _Cursor(self._data, at)
        if kind == _TEXT:
            return cursor.text()
        if kind == _UINT32:
            return str(cursor.number("<I"))
        raise StepFailed(f"the conversion has no `{key}`")

    def settings(self, file_type: int | None = None) -> Settings:
        """All settings; with the number ``file_type`` in place of their own, if given."""
        raw = bytearray(self._data[_FIRST : self._end])
        if file_type is not None:
            struct.pack_into("<I", raw, self._values[_FILE_TYPE][1] - _FIRST, file_type)
        return Settings(bytes(raw), self._number)

    def data(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of one of ``tensors``, mapped: uint8 [rows, bytes of a row]."""
        columns, *others = tensor.shape
        size, rows = row_bytes(tensor.type, columns), math.prod(others)
        start = self._first + self._starts[tensor.name]
        return self._data[start : start + rows * size].reshape(rows, size)


def tensors(path: Path) -> list[Tensor]:
    """All tensors of a file."""
    return Header(path).tensors


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of ``columns`` weights in ggml's type ``kind``.

    Raises:
        StepFailed: a block does not end where a row does. (ggml would end the process.)
    """
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if columns % block:
        raise StepFailed(f"{kind} has blocks of {block} weights, and rows have {columns}")
    return int(columns // block * size)


def padded(size: int) -> int:
    """``size`` bytes with what follows them until the next tensor may begin."""
    return size + -size % ALIGNMENT


def start(told: Settings, stored: Sequence[Tensor], sizes: Sequence[int]) -> bytes:
    """All of a file that comes before its data: ``told``, and its tensors with their ``sizes`` in
    bytes, in the order of their data."""
    raw = bytearray(struct.pack("<4sIQQ", b"GGUF", gguf.GGUF_VERSION, len(stored), told.number))
    raw += told.raw
    offset = 0
    for tensor, size in zip(stored, sizes, strict=True):
        name = tensor.name.encode()
        raw += struct.pack("<Q", len(name)) + name
        raw += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        raw += struct.pack("<IQ", gguf.GGMLQuantizationType[tensor.type], offset)
        offset += padded(size)
    return bytes(raw.ljust(padded(len(raw)), b"\0"))

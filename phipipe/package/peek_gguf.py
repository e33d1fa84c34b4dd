"""The header of a GGUF file, counted through within bounds before any library reads it.

A file of 51 bytes that promises 2**61 entries keeps gguf's own reader busy for ever.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

MAX_PAIRS = 4096
MAX_TENSORS = 65_536
MAX_KEY = 512  # bytes
MAX_TEXT = 2**20  # bytes of one text: a chat template has some thousand
MAX_ITEMS = 2**22  # of one array: the largest vocabularies have a quarter of a million
MAX_DIMENSION = 2**40
_TEXT, _ARRAY = 8, 9
_SIZES = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes, by GGUF's types of values

_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# What settings may be, by their names without the architecture's: llama.cpp ends the process over
# some of the others.
_BOUNDS: Mapping[bytes, tuple[float, float]] = {
    b"block_count": (1, 4096),
    b"context_length": (1, 2**31 - 1),
    b"embedding_length": (1, 2**20),
    b"feed_forward_length": (0, 2**24),
    b"attention.head_count": (1, 4096),
    b"attention.head_count_kv": (0, 4096),
    b"attention.key_length": (1, 2**16),
    b"attention.value_length": (1, 2**16),
    b"attention.layer_norm_epsilon": (0, 1),
    b"attention.layer_norm_rms_epsilon": (0, 1),
    b"attention.sliding_window": (0, 2**31 - 1),
    b"rope.dimension_count": (0, 2**16),
    b"alignment": (1, 2**16),
    b"count": (0, 1),  # of files that one model is split into
}


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def skip(self, count: int) -> None:
        if count > len(self._data) - self._at:
            raise ValueError("it is cut short")
        self._at += count

    def text(self, most: int) -> bytes:
        length = self.take("<Q")
        if length > most:
            raise ValueError(f"a text of {length} bytes")
        start = self._at
        self.skip(length)
        return self._data[start : self._at]

    def pair(self) -> None:
        key, kind = self.text(MAX_KEY), self.take("<I")
        if not key.decode("utf-8").isprintable():
            raise ValueError("a setting whose name does not print")
        least, most = _BOUNDS.get(key.partition(b".")[2], (0, 0))
        if most and kind in _NUMBERS:
            (number,) = struct.unpack_from(_NUMBERS[kind], self._data, self._at)
            if not least <= number <= most:
                raise ValueError(f"`{key.decode()}` is {number}, which no model has")
        self.value(kind)

    def value(self, kind: int) -> None:
        if kind == _TEXT:
            self.text(MAX_TEXT)
        elif kind == _ARRAY:
            self._array()
        else:
            self.skip(_size(kind))

    def _array(self) -> None:
        kind, count = self.take("<I"), self.take("<Q")
        if count > MAX_ITEMS:
            raise ValueError(f"a list of {count} values")
        if kind != _TEXT:
            self.skip(count * _size(kind))
            return
        for _ in range(count):
            self.text(MAX_TEXT)

    def tensor(self) -> None:
        self.text(MAX_KEY)
        dimensions = self.take("<I")
        if dimensions > 4 or any(
            not 0 < self.take("<Q") <= MAX_DIMENSION for _ in range(dimensions)
        ):
            raise ValueError("a tensor of an impossible shape")
        self.take("<I")
        if self.take("<Q") > len(self._data):
            raise ValueError("a tensor beyond the end")


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError("a value of no known kind")
    return _SIZES[kind]


def problems(path: Path) -> list[str]:
    """Phrases, to follow the file's name, on what in the header of ``path`` no model has."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        if data[:4] != b"GGUF":
            return ["is no GGUF file"]
        reader.skip(4)
        version, tensors, pairs = reader.take("<I"), reader.take("<Q"), reader.take("<Q")
        if version not in (2, 3):
            return [f"is GGUF of version {version}, which nothing here reads"]
        if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
            return [f"promises {tensors} tensors and {pairs} settings, more than any model has"]
        for _ in range(pairs):
            reader.pair()
        for _ in range(tensors):
            reader.tensor()
    return []

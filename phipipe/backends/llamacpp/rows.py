"""A converted checkpoint that is no file: llama.cpp's converter says what it would hold, and its
rows come from the checkpoint as they are asked for.

An outline is a folder. ``outline.gguf`` has the converter's settings and the tensors that it
computes or that are small; ``outline.json`` lists all tensors in its order. Of each matrix that is
rows of the checkpoint's, it says which: a range, or an order in ``orders.npz``.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from phipipe.backends.llamacpp.header import Header
from phipipe.backends.llamacpp.stored import Tensor
from phipipe.errors import StepFailed
from phipipe.models import tensor_places
from phipipe.models.tensor_places import Place
from phipipe.steps import Json

FILE, LIST, ORDERS = "outline.gguf", "outline.json", "orders.npz"
KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' types that are read by rows

Values = npt.NDArray[np.uint16 | np.float16 | np.float32]
Floats = npt.NDArray[np.float32]
Raw = npt.NDArray[np.uint8]


def nothing() -> None:
    """Nobody to tell."""


class Rows(NamedTuple):
    """The rows of one tensor, in the order of the file."""

    tensor: Tensor
    values: Values  # [rows, columns] of ``dtype``, mapped
    dtype: str  # F32, F16 or BF16
    announce: Callable[[], None]  # lets the system read the values from disk
    first: int = 0
    order: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a vector is one row."""
        columns, *others = self.tensor.shape
        return int(np.prod(others, dtype=np.int64)), columns

    def raw(self, start: int, end: int) -> Raw:
        """Rows ``start`` to ``end`` in the tensor's own type, uint8 [rows, bytes of a row]."""
        found = self._range(start, end)
        if self.dtype != self.tensor.type:
            kind = gguf.GGMLQuantizationType[self.tensor.type]
            return np.asarray(gguf.quantize(_widened(found, self.dtype), kind)).view(np.uint8)
        return np.ascontiguousarray(found).view(np.uint8)

    def floats(self, start: int, end: int) -> Floats:
        """The same rows as they are read from that type, float32 [rows, columns]."""
        return self._read(self._range(start, end))

    def picked(self, chosen: npt.NDArray[np.intp]) -> Floats:
        """The ``chosen`` rows, float32 [len(chosen), columns]."""
        places = self.first + chosen if self.order is None else self.order[chosen]
        return self._read(np.asarray(self.values[places]))

    def _range(self, start: int, end: int) -> Values:
        if self.order is not None:
            return np.asarray(self.values[self.order[start:end]])
        return np.asarray(self.values[self.first + start : self.first + end])

    def _read(self, found: Values) -> Floats:
        wide = _widened(found, self.dtype)
        if self.tensor.type in (self.dtype, "F32"):
            return wide
        kind = gguf.GGMLQuantizationType[self.tensor.type]
        return np.asarray(gguf.dequantize(gguf.quantize(wide, kind), kind), np.float32)


def _widened(found: Values, dtype: str) -> Floats:
    if dtype != "BF16":
        return np.ascontiguousarray(found, np.float32)
    wide = np.empty(found.shape, np.uint32)
    np.left_shift(found.view(np.uint16), 16, out=wide, dtype=np.uint32)
    return wide.view(np.float32)  # BF16 is the upper half


class Outline:
    """An outline, and the checkpoint ``source`` whose rows it names."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.header = Header(folder / FILE)
        listed = json.loads((folder / LIST).read_text("utf-8"))
        self._kept = {tensor.name for tensor in self.header.tensors}
        self._places = tensor_places.places(source)
        self._source = source
        self._maps: dict[str, mmap.mmap] = {}
        with np.load(folder / ORDERS) as orders:
            self.rows = [self._rows_of(one, orders) for one in listed["tensors"]]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the converter's order and types."""
        return [one.tensor for one in self.rows]

    def _rows_of(self, one: Json, orders: Mapping[str, npt.NDArray[np.int32]]) -> Rows:
        tensor = Tensor(one["name"], one["type"], tuple(one["shape"]))
        place = self._places.get(one["source"]) if one["source"] else None
        if place is None:
            return self._kept_rows(tensor)
        order, announce = orders.get(tensor.name), partial(_announce, self._map(place), place)
        return Rows(tensor, self._values(place), place.dtype, announce, one["first"], order)

    def _map(self, place: Place) -> mmap.mmap:
        if place.file not in self._maps:
            with (self._source / place.file).open("rb") as file:
                self._maps[place.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[place.file]

    def _values(self, place: Place) -> Values:
        count = math.prod(place.shape)
        found = np.frombuffer(self._map(place), KINDS[place.dtype], count, place.offset)
        return found.reshape(place.shape)

    def _kept_rows(self, tensor: Tensor) -> Rows:
        if tensor.name not in self._kept:
            raise StepFailed(f"the checkpoint has no rows for `{tensor.name}`")
        return Rows(tensor, self.header.data(tensor).view(KINDS[tensor.type]), tensor.type, nothing)


def _announce(data: mmap.mmap, place: Place) -> None:
    """Have the system read ``place`` while other things go on, where it can be told (not on
    Windows)."""
    if hasattr(data, "madvise") and hasattr(mmap, "MADV_WILLNEED"):
        start = place.offset - place.offset % mmap.PAGESIZE
        data.madvise(mmap.MADV_WILLNEED, start, place.offset + place.size_bytes - start)

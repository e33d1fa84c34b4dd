"""Weights that are never all in memory: read from a checkpoint when asked for, written once beside
several graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from phipipe.backends.arrays import Array
from phipipe.models import weight_files, weights

ALIGNMENT = 4096  # bytes; a page, so that onnxruntime maps a constant instead of reading it


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of safetensors' ``dtype`` lies: ``size_bytes`` from ``offset`` of ``path``."""

    path: Path
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


class Weights(Mapping[str, npt.NDArray[np.float32]]):
    """The tensors of the checkpoint in ``folder`` by name, each converted to float32 when it is
    asked for.

    A tied LM head is there under its own name. The last tensor is kept: joined linears are asked
    for part by part.
    """

    def __init__(self, folder: Path) -> None:
        self._places = {
            tensor.name: Place(
                path=folder / file,
                offset=tensor.offset,
                size_bytes=tensor.size_bytes,
                dtype=tensor.dtype,
                shape=tuple(tensor.shape),
            )
            for file in weight_files.choose(folder).files
            for tensor in weights.tensors(folder / file)
        }
        self._places.setdefault("lm_head.weight", self._places["model.embed_tokens.weight"])
        self._last: tuple[str, npt.NDArray[np.float32]] = ("", np.zeros(0, np.float32))

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        if self._last[0] != name:
            self._last = (name, _read(self._places[name]))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read(place: Place) -> npt.NDArray[np.float32]:
    # a mapping would stay, and count as memory
    raw = np.fromfile(place.path, np.uint8, place.size_bytes, offset=place.offset)
    if place.dtype == "BF16":
        value = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        kind = np.float32 if place.dtype == "F32" else np.float16
        value = raw.view(kind).astype(np.float32)
    return value.reshape(place.shape)


class DataFile:
    """A file of constants ("external data" in ONNX's terms) that several graphs beside it refer to.

    A protobuf cannot exceed 2 GB, and graphs of different lengths have the same weights: each is
    written once.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._stream = path.open("wb")
        self._tensors: dict[str, TensorProto] = {}

    def place(self, name: str, make: Callable[[], Array], kind: int | None = None) -> TensorProto:
        """The tensor of the constant ``name``, whose value ``make`` gives when it is
        not yet here.

        ``kind`` is the ONNX type where it is not the array's: INT4 packs the int8 values of
        ``make`` in pairs.
        """
        if name in self._tensors:
            return self._tensors[name]
        value = make()
        kind = helper.np_dtype_to_tensor_dtype(value.dtype) if kind is None else kind
        stored = pairs(value) if kind == TensorProto.INT4 else np.ascontiguousarray(value)
        self._stream.write(b"\0" * (-self._stream.tell() % ALIGNMENT))
        tensor = TensorProto(
            name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL
        )
        facts = {"location": self._name, "offset": self._stream.tell(), "length": stored.nbytes}
        for key, fact in facts.items():
            tensor.external_data.add(key=key, value=str(fact))
        self._stream.write(stored.data)
        self._tensors[name] = tensor
        return tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def pairs(values: Array) -> npt.NDArray[np.uint8]:
    """Numbers of 4 bits, two to a byte, the first in the lower half; an odd one out is paired with
    0."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8) & np.uint8(15)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)


def value_of(tensor: TensorProto, folder: Path) -> npt.NDArray[np.float32]:
    """The float32 constant ``tensor`` of a graph in ``folder``, mapped from its data file."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(tensor.dims)
    return np.memmap(folder / facts["location"], np.float32, "r", int(facts["offset"]), shape)

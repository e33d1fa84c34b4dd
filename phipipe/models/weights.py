"""What the headers of safetensors files say of a checkpoint's weights.

Headers are a stranger's JSON. What comes out of here is bounded, lies in its file without holes or
overlaps, and has names that can be printed. No weight is read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json

# Bits per element of safetensors dtypes (safetensors' own table).
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    ),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# Bounds: the largest headers of the field have some 2,000 tensors and 300 kB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_RANK, MAX_ELEMENTS, MAX_NAME = 8, 2**44, 300
AGAIN = "download or copy it again"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a header says of a tensor; ``offset`` is in bytes from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def tensors(path: Path, size: int | None = None) -> list[Tensor]:
    """What the header of ``path`` says, in the order of the data; it fits the file's ``size`` to
    the byte.

    Raises:
        SourceError: it is no safetensors file, is cut short, or its header is corrupt or beyond all
            bounds.
    """
    size = path.stat().st_size if size is None else size
    raw = _header(path, size)
    start = 8 + len(raw)
    entries = _entries(raw, path).items()
    ordered = sorted(
        (_tensor(path, name, entry, start) for name, entry in entries),
        key=lambda tensor: (tensor.offset, tensor.size_bytes),
    )
    end = start
    for tensor in ordered:
        if tensor.offset != end:
            what = "does not lie where its header says: there is a hole or an overlap before it"
            _odd(path, tensor.name, what)
        end += tensor.size_bytes
    if end != size:
        raise SourceError(
            f"`{path}` is cut short or padded: its header describes {end - start} bytes of "
            f"weights, the file has {size - start}",
            hint=AGAIN,
        )
    return ordered


def names(path: Path) -> list[str]:
    """Names of the tensors that the header of ``path`` lists, whatever else it says.

    Raises:
        SourceError: it has no such header.
    """
    return list(_entries(_header(path, path.stat().st_size), path))


def _entries(raw: bytes, path: Path) -> dict[str, Json]:
    """Tensor → what the header ``raw`` says of it."""
    corrupt = f"`{path}` has a corrupt safetensors header"
    try:
        header = json_files.parse(raw, path)
    except SourceError as error:
        raise SourceError(f"{corrupt}: {error.message}", hint=AGAIN) from None
    if not isinstance(header, dict):
        raise SourceError(f"{corrupt}: it is no JSON object")
    about = header.pop("__metadata__", None)
    about = {} if about is None else about
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise SourceError(f"{corrupt}: `__metadata__` is no table of texts")
    return header


def _header(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        prefix = stream.read(8)
        json_files.refuse_pointer(prefix + stream.peek(120)[:120] if size < 1024 else prefix, path)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= max(size - 8, 0):
            raise SourceError(
                f"`{path}` is not a safetensors file, or is cut short ({size} bytes)", hint=AGAIN
            )
        if length > MAX_HEADER_BYTES:
            raise SourceError(
                f"`{path}` has a safetensors header of {length} bytes; at most "
                f"{MAX_HEADER_BYTES} make sense"
            )
        raw = stream.read(length)
    if len(raw) != length:
        raise SourceError(
            f"`{path}` is not a safetensors file, or is cut short ({size} bytes)", hint=AGAIN
        )
    return raw


def _tensor(path: Path, name: str, entry: Json, start: int) -> Tensor:
    check_name(path, name)
    if not isinstance(entry, dict):
        _odd(path, name, "has no dtype, shape and place")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        shown = json_files.shown(str(dtype))
        _odd(path, name, f"has the dtype `{shown}`, which is none of safetensors'")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_count, shape)):
        what = "a shape that is none: not a few whole numbers, none of them negative or huge"
        _odd(path, name, f"has {what}")
    if not _are_offsets(offsets):
        _odd(path, name, "has `data_offsets` that are not a start and an end")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        _odd(path, name, "has more elements than any model")
    first, last = offsets
    if (last - first) * 8 != elements * DTYPE_BITS[dtype]:
        what = f"{last - first} bytes are not {elements} × {dtype}"
        _odd(path, name, f"does not lie where its header says: {what}")
    return Tensor(
        name=name,
        file=path.name,
        dtype=dtype,
        shape=tuple(shape),
        offset=start + first,
        size_bytes=last - first,
    )


def _are_offsets(value: Json) -> TypeGuard[list[int]]:
    whole = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    return whole and len(value) == 2


def _is_count(value: Json) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def check_name(path: Path, name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise SourceError(
            f"`{path}` is malformed: `{json_files.shown(name)}` is no name of a tensor",
            hint="save the model again, or take the original",
        )


def _odd(path: Path, name: str, what: str) -> NoReturn:
    raise SourceError(f"`{path}` is corrupt: tensor `{name}` {what}", hint=AGAIN)


def same_bytes(folder: Path, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same dtype and shape hold the same, read piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with (folder / one.file).open("rb") as first, (folder / other.file).open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.size_bytes
        while left:
            piece = first.read(min(left, 2**20))
            if not piece or piece != second.read(len(piece)):
                return False
            left -= len(piece)
    return True

"""Whether all weights of a checkpoint are numbers, found without numpy and about as fast as a disk
reads.

A NaN spreads to every answer, and a quantizer makes a scale of it: nobody could tell from the
artifact where it came from. So the original is looked at before anything is made of it. In floats
of IEEE 754, an exponent of all ones is infinity or NaN; in little-endian files it stands in the
last one or two bytes of each element.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from phipipe import progress
from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import weight_files, weights
from phipipe.models.layouts import EMBEDDING, HEAD, is_buffer
from phipipe.models.weights import Tensor

HIGH_BYTE = "the higher byte of F16"
CHUNK_BYTES = 2**22  # a multiple of every element's size


def _where(wanted: Callable[[int], bool]) -> bytes:
    """A table for ``bytes.translate``: 1 for the bytes that are ``wanted``, 0 for others."""
    return bytes(wanted(byte) for byte in range(256))


# dtype → bytes of an element; tables for its last byte and for the one before, where the exponent
# reaches into that.
_KINDS: Mapping[str, tuple[int, bytes, bytes | None]] = {
    "F16": (2, _where(lambda byte: byte & 0x7C == 0x7C), None),
    "BF16": (2, _where(lambda byte: byte & 0x7F == 0x7F), _where(lambda byte: byte >= 0x80)),
    "F32": (4, _where(lambda byte: byte & 0x7F == 0x7F), _where(lambda byte: byte >= 0x80)),
    "F8_E4M3": (1, _where(lambda byte: byte & 0x7F == 0x7F), None),
    "F8_E5M2": (1, _where(lambda byte: byte & 0x7C == 0x7C), None),
    HIGH_BYTE: (1, _where(lambda byte: byte & 0x7C == 0x7C), None),
    "F64": (8, _where(lambda byte: byte & 0x7F == 0x7F), _where(lambda byte: byte >= 0xF0)),
}


def first_odd(raw: bytes, dtype: str) -> int | None:
    """Number of the first element of ``raw`` (little-endian, whole elements) that is infinite or
    no number; None if there is none, and for dtypes that are no floats."""
    if dtype not in _KINDS:
        return None
    size, last, before = _KINDS[dtype]
    ends = raw[size - 1 :: size]
    if before is not None and b"\x7f" not in ends and b"\xff" not in ends:
        return None
    marked = ends.translate(last)
    if before is not None:
        seconds = raw[size - 2 :: size].translate(before)
        both = int.from_bytes(marked, "big") & int.from_bytes(seconds, "big")
        marked = both.to_bytes(len(marked), "big")
    found = marked.find(1)
    return None if found < 0 else found


def check(folder: Path) -> None:
    """Look at every weight of the checkpoint in ``folder``.

    Raises:
        SourceError: names the first tensor with an infinite weight or a NaN, and its place.
    """
    for name in progress.each(weight_files.choose(folder).files, "files checked"):
        for tensor in weights.tensors(folder / name):
            _check_tensor(folder / name, tensor)


def check_file(path: Path, whose: str) -> None:
    """Look at every weight of one file; ``whose`` it is says the message.

    Raises:
        SourceError: as ``check``.
    """
    for tensor in weights.tensors(path):
        _check_tensor(path, tensor, whose)


def _check_tensor(path: Path, tensor: Tensor, whose: str = "original") -> None:
    if tensor.dtype not in _KINDS or is_buffer(tensor.name):
        return
    size = _KINDS[tensor.dtype][0]
    with path.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        for start in range(0, tensor.size_bytes, CHUNK_BYTES):
            raw = stream.read(min(CHUNK_BYTES, tensor.size_bytes - start))
            place = first_odd(raw, tensor.dtype)
            if place is not None:
                element = raw[place * size : (place + 1) * size]
                raise _refusal(path, tensor, start // size + place, element, whose)


def _refusal(path: Path, tensor: Tensor, place: int, element: bytes, whose: str) -> SourceError:
    """``place``: the element's number in the tensor."""
    kind = "NaN" if _is_nan(element, tensor.dtype) else "an infinite weight"
    index = []
    for length in reversed(tensor.shape):
        place, at = divmod(place, length)
        index.append(at)
    where = ", ".join(map(str, reversed(index)))
    hint = "take an earlier save, or ask whoever made the model: its training or merging failed"
    if tensor.name in (EMBEDDING, HEAD):
        hint += f"; if no text has token {index[-1]}, set that row to zero"
    return SourceError(
        f"the {whose} has {kind} in tensor `{json_files.shown(tensor.name)}` at [{where}] "
        f"(`{path}`): no runtime could compute with it",
        hint=hint,
    )


def _is_nan(element: bytes, dtype: str) -> bool:
    if dtype == "F8_E4M3":  # which has no infinity
        return True
    if dtype == "F8_E5M2":  # F16's higher byte
        return math.isnan(struct.unpack("<e", b"\0" + element)[0])
    if dtype == "BF16":
        return math.isnan(struct.unpack("<f", b"\0\0" + element)[0])
    return math.isnan(struct.unpack({"F16": "<e", "F32": "<f", "F64": "<d"}[dtype], element)[0])

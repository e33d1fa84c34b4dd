"""The header of a GGUF, read and written (ggml, docs/gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gguf

from phipipe.backends.llamacpp.stored import Tensor

ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT  # bytes, of each tensor's data
_FIRST = 24  # bytes before the settings: magic, version, number of tensors and of settings
_FILE_TYPE = "general.file_type"


class Settings(NamedTuple):
    """All that a header says besides its tensors, as bytes, and how many settings these are."""

    raw: bytes
    number: int


def tensors(path: Path) -> list[Tensor]:
    """All tensors of a file that phipipe's own steps wrote (the reader hangs on hostile ones)."""
    return listed(gguf.GGUFReader(path))


def listed(reader: gguf.GGUFReader) -> list[Tensor]:
    """All tensors of an open file, as it lists them."""
    return [
        Tensor(t.name, t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in reader.tensors
    ]


def settings(reader: gguf.GGUFReader, file_type: int | None = None) -> Settings:
    """The settings of an open file; with the number ``file_type`` in place of its own, if given."""
    fields = [one for name, one in reader.fields.items() if not name.startswith("GGUF.")]
    ends = [one.offset + sum(part.nbytes for part in one.parts) for one in fields]
    raw = bytearray(reader.data[_FIRST : max(ends)])
    if file_type is not None:
        one = reader.fields[_FILE_TYPE]
        at = one.offset + sum(part.nbytes for part in one.parts[:-1]) - _FIRST
        struct.pack_into("<I", raw, at, file_type)
    return Settings(bytes(raw), len(fields))


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

"""Where a checkpoint's tensors lie in its files, and new files made of them byte by byte."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from phipipe import progress
from phipipe.models import weight_files, weights
from phipipe.steps import Json

_CHUNK = 2**24  # bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor's bytes lie: ``file`` of a checkpoint, ``offset`` in bytes, safetensors
    ``dtype``, ``shape``."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * weights.DTYPE_BITS[self.dtype] // 8


def places(folder: Path) -> dict[str, Place]:
    """Tensor name → where it lies, for all weights of the checkpoint."""
    return {
        tensor: place
        for name in weight_files.choose(folder).files
        for tensor, place in of_file(folder / name).items()
    }


def of_file(path: Path) -> dict[str, Place]:
    """Tensor name → where it lies, for all tensors of one file."""
    return {
        tensor.name: Place(
            file=path.name, offset=tensor.offset, dtype=tensor.dtype, shape=tensor.shape
        )
        for tensor in weights.tensors(path)
    }


def write(
    path: Path,
    source: Path,
    kept: Mapping[str, Place],
    changed: Mapping[str, Callable[[], bytes]] | None = None,
) -> None:
    """A safetensors file at ``path`` of ``kept``, tensors of the checkpoint ``source``, in that
    order.

    ``changed`` gives the bytes of those that are not as they were, of the same dtype and shape.
    """
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, place in kept.items():
        start, end = end, end + place.size_bytes
        header[name] = {"dtype": place.dtype, "shape": place.shape, "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as target:
        target.write(struct.pack("<Q", len(raw)) + raw)
        for done, (name, place) in enumerate(kept.items()):
            progress.report(done, len(kept), "weights")
            if changed and name in changed:
                target.write(changed[name]())
            else:
                _copy(source / place.file, place, target)


def _copy(file: Path, place: Place, target: BinaryIO) -> None:
    with file.open("rb") as stream:
        stream.seek(place.offset)
        for at in range(0, place.size_bytes, _CHUNK):
            target.write(stream.read(min(_CHUNK, place.size_bytes - at)))

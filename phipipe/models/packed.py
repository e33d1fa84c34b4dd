"""A weight that is stored in pieces: codes, scales, zero points, the order of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.layouts import Shape
from phipipe.models.weights import DTYPE_BITS, Tensor
from phipipe.steps import Json

# torch's names of the dtypes that weights are widened to, and safetensors'.
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
HALVES = ("F16", "BF16")
SCALES = (*HALVES, "F32")
GROUPS = (16, 32, 64, 128, 256, 512, 1024)  # sizes, in weights
_HINT = "download it again; or start from the original in 16 bits"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight ``name`` of ``shape`` (rows, columns) that is widened to ``dtype``, safetensors'.

    ``rule`` names the arithmetic (``models/unpacking``), ``parts`` the pieces by what they are.
    ``bits`` are those of a code, ``facts`` what else the arithmetic needs.
    """

    name: str
    shape: Shape
    dtype: str
    rule: str
    bits: int
    parts: Mapping[str, Tensor]
    facts: Mapping[str, Json] = field(default_factory=dict)

    @property
    def tensor(self) -> Tensor:
        """The widened weight as a header would have it, at no place yet."""
        rows, columns = self.shape
        size = rows * columns * DTYPE_BITS[self.dtype] // 8
        first = next(iter(self.parts.values()))
        return Tensor(
            name=self.name,
            file=first.file,
            dtype=self.dtype,
            shape=self.shape,
            offset=0,
            size_bytes=size,
        )


class Pieces:
    """What a checkpoint's headers have of the weight ``name`` of ``shape``."""

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], name: str, shape: Shape
    ) -> None:
        self.folder, self.tensors, self.name, self.shape = folder, tensors, name, shape
        self.stem = name.removesuffix(".weight")

    def has(self, suffix: str, *dtypes: str) -> bool:
        """Whether there is a piece of this name, of one of ``dtypes`` if any are named."""
        tensor = self.tensors.get(self.stem + suffix)
        return tensor is not None and (not dtypes or tensor.dtype in dtypes)

    def any_of(self, suffixes: Sequence[str]) -> Tensor | None:
        """The first piece that is there."""
        names = (self.stem + suffix for suffix in suffixes)
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def take(self, suffix: str, dtypes: Sequence[str], *shapes: Shape) -> Tensor:
        """The piece, which has one of ``dtypes`` and, where any are given, one of ``shapes``.

        Raises:
            SourceError: it is missing, or is none that the weight can have.
        """
        tensor = self.tensors.get(self.stem + suffix)
        if tensor is None:
            self.refuse(f"`{self.stem}{suffix}` is missing")
        if tensor.dtype not in dtypes:
            self.refuse(f"`{tensor.name}` is {tensor.dtype}, not {' or '.join(dtypes)}")
        if shapes and tensor.shape not in shapes:
            self.refuse(f"`{tensor.name}` is {_words(tensor.shape)}, not {_words(shapes[0])}")
        return tensor

    def refuse(self, what: str) -> NoReturn:
        """Say that the weight cannot be put together."""
        raise SourceError(
            f"the pieces of `{self.name}` ({_words(self.shape)}) in `{self.folder}` do not make a "
            f"weight: {what}",
            hint=_HINT,
        )


def _words(shape: Shape) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def kept(scale: str, model: str) -> str:
    """The dtype to widen to: the scales' own, since a code times a scale is rounded to that by the
    format's runtimes; the model's where scales are kept in 32 bits."""
    return scale if scale in HALVES else model


def shown(value: Json) -> str:
    """A setting for a message."""
    return json_files.shown(str(value))

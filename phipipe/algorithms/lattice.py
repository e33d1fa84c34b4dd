"""Weights on a lattice that several runtimes store exactly: integer codes in groups along the
input, one signed scale a group.

Codes have 4 bits (−8 … 7) or 8 (−128 … 127). Scales are float16 with 7 significant bits inside its
normal range, so that code × scale, and −8 × scale as the bias of formats that want one, are exact
in float16. Light: numpy alone, since every toolchain reads it.

A folder holds ``lattice.json`` (what is stored, and the digest) and one safetensors file for each
layer, with ``NAME.q4`` uint8 [rows, columns / 2] (code + 8, two in a byte, the first in the low
half) or ``NAME.q8`` uint8 [rows, columns] (code + 128), and ``NAME.scales`` float16 [rows, groups].
Names are those of ``models.linears``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from phipipe.algorithms.learned import INDEX
from phipipe.errors import StepFailed
from phipipe.files import json_files
from phipipe.models import linears, tensor_places

SIGNIFICANT_BITS = 7
SMALLEST = 2.0**-14  # float16's smallest normal number
LARGEST = float(np.float16(127 / 128 * 2**16))
_FILE = "part-{:05}.safetensors"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight [rows, columns]: ``codes`` int8 [rows, columns], ``scales`` float16 [rows,
    columns / group size]."""

    bits: int
    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]

    @property
    def group_size(self) -> int:
        size: int = self.codes.shape[1] // self.scales.shape[1]
        return size

    def rows(self, order: npt.NDArray[np.intp]) -> Matrix:
        """The rows that ``order`` names, in that order."""
        return Matrix(bits=self.bits, codes=self.codes[order], scales=self.scales[order])

    def dense(self) -> Floats:
        """The weight that it stands for, float32 [rows, columns], exactly."""
        rows, columns = self.codes.shape
        groups = self.codes.reshape(rows, -1, self.group_size).astype(np.float32)
        return (groups * self.scales.astype(np.float32)[..., None]).reshape(rows, columns)

    def packed(self) -> npt.NDArray[np.uint8]:
        """The codes without their sign, uint8: [rows, columns] at 8 bits; at 4, [rows,
        columns / 2], the first of each two in the low half."""
        lifted = (self.codes.astype(np.int16) + (1 << (self.bits - 1))).astype(np.uint8)
        if self.bits == 8:
            return lifted
        return np.asarray(lifted[:, ::2] | lifted[:, 1::2] << 4, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A ``Matrix`` as it lies in its file: ``codes`` as ``Matrix.packed`` has them."""

    bits: int
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, packed = self.codes.shape
        return rows, packed * 8 // self.bits

    @property
    def group_size(self) -> int:
        size: int = self.shape[1] // self.scales.shape[1]
        return size

    def part(self, start: int, stop: int) -> Packed:
        """The rows from ``start`` to ``stop``."""
        codes, scales = self.codes[start:stop], self.scales[start:stop]
        return Packed(bits=self.bits, codes=codes, scales=scales)

    def matrix(self) -> Matrix:
        """The codes as numbers."""
        codes = unpacked(self.codes, self.bits)
        return Matrix(bits=self.bits, codes=codes, scales=np.asarray(self.scales, np.float16))


Rows = TypeVar("Rows", Matrix, Packed)


def joined(parts: Iterable[Rows]) -> Rows:
    """One matrix of the rows of all ``parts``, which have the same bits and groups."""
    parts = list(parts)
    return type(parts[0])(
        bits=parts[0].bits,
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
    )


def limits(bits: int) -> tuple[int, int]:
    """The lowest and the highest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def to_scales(values: Floats) -> npt.NDArray[np.float16]:
    """The nearest scales of the lattice, float16; what lies nearer to zero than the smallest
    becomes the smallest, with its sign."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    kept = np.ldexp(np.rint(mantissa * 2**SIGNIFICANT_BITS), exponent - SIGNIFICANT_BITS)
    signs = np.where(np.signbit(kept), -1.0, 1.0)
    scales: npt.NDArray[np.float64] = signs * np.clip(np.abs(kept), SMALLEST, LARGEST)
    return scales.astype(np.float16)


def unpacked(raw: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    """The codes int8 [rows, columns] of ``Matrix.packed``."""
    wide = raw.astype(np.int16)
    if bits == 4:
        wide = np.stack([wide & 15, wide >> 4], -1).reshape(len(raw), -1)
    return (wide - (1 << (bits - 1))).astype(np.int8)


def write(folder: Path, part: int, matrices: Mapping[str, Matrix]) -> None:
    """Store ``matrices`` as file number ``part`` of ``folder``, whole or not at all."""
    path = folder / _FILE.format(part)
    aside = path.with_suffix(".new")
    tensors: dict[str, npt.NDArray[np.uint8] | npt.NDArray[np.float16]] = {}
    for name, matrix in sorted(matrices.items()):
        tensors[f"{name}.q{matrix.bits}"] = matrix.packed()
        tensors[f"{name}.scales"] = np.ascontiguousarray(matrix.scales)
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = "U8" if tensor.dtype == np.uint8 else "F16"
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": offsets}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with aside.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors.values():
            stream.write(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
    aside.replace(path)


def has(folder: Path, part: int) -> bool:
    """Whether file number ``part`` is there."""
    return (folder / _FILE.format(part)).is_file()


def finish(folder: Path, about: Mapping[str, object]) -> None:
    """Write the index of all files of ``folder``, with ``about``: how the weights were made."""
    stored = Lattice(folder)
    index = {
        **about,
        "weights_digest": stored.computed_digest(),
        "matrices": {name: list(stored.width(name)) for name in sorted(stored.names)},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


class Lattice:
    """The matrices in ``folder``, read one at a time.

    Raises:
        StepFailed: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = {
            name: place
            for path in sorted(folder.glob(_FILE.replace("{:05}", "*")))
            for name, place in tensor_places.of_file(path).items()
        }
        stored = (name.rpartition(".") for name in self._places)
        self._bits = {name: int(part[1:]) for name, _, part in stored if part[0] == "q"}
        self.names = frozenset(self._bits)
        if not self.names:
            raise StepFailed("the learned weights are not there")

    @cached_property
    def digest(self) -> str:
        """``weights_digest``, as the index holds it: SHA-256 over all matrices in the order of
        their names."""
        return str(json_files.read_object(self._folder / INDEX)["weights_digest"])

    def width(self, name: str) -> tuple[int, int]:
        """Bits and group size of the matrix ``name``."""
        bits = self._bits[name]
        codes, scales = (self._places[f"{name}.{part}"].shape for part in (f"q{bits}", "scales"))
        return bits, codes[1] * 8 // bits // scales[1]

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of the matrix ``name``."""
        rows, packed = self._places[f"{name}.q{self._bits[name]}"].shape
        return rows, packed * 8 // self._bits[name]

    def computed_digest(self) -> str:
        """The digest, from the bytes that are there."""
        digest = hashlib.sha256()
        for name in sorted(self.names):
            bits, group_size = self.width(name)
            rows, columns = self.shape(name)
            digest.update(f"{name}\0{bits}\0{group_size}\0{rows}\0{columns}\0".encode())
            digest.update(self._codes(name).tobytes() + self._scales(name).astype("<f2").tobytes())
        return digest.hexdigest()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Matrix:
        """The matrix ``name``."""
        return self._stored(name).matrix()

    def rows_of(self, name: str, rows: int) -> Matrix:
        """``packed_of``, as numbers.

        Raises:
            StepFailed: there is none, or it has other rows.
        """
        return self.packed_of(name, rows).matrix()

    def packed_of(self, name: str, rows: int) -> Packed:
        """The matrix that a runtime calls ``name`` and holds with so many ``rows``, though the
        checkpoint may hold it within a joined one, or in several. What is not joined is not read
        yet.

        Raises:
            StepFailed: there is none, or it has other rows.
        """
        found = self._found(name) or self._part(name, rows)
        if found is None or len(found.codes) != rows:
            raise StepFailed(f"the learned weights have no `{name}` of {rows} rows")
        return found

    def _found(self, name: str) -> Packed | None:
        if name in self:
            return self._stored(name)
        prefix, _, last = name.rpartition(".")
        parts = [f"{prefix}.{part}" for part in linears.JOINED.get(last, ())]
        if not parts or not set(parts) <= self.names:
            return None
        return joined(self._stored(part) for part in parts)

    def _part(self, name: str, rows: int) -> Packed | None:
        """The ``rows`` of ``name`` within the joined matrix that holds them. All parts but the
        first have the same length."""
        whole, last = linears.joined(name), name.rpartition(".")[2]
        if whole is None or whole not in self:
            return None
        parts = linears.JOINED[whole.rpartition(".")[2]]
        total, place, others = self.shape(whole)[0], parts.index(last), len(parts) - 1
        first = total - others * rows if place else rows
        if not 0 < first < total or (total - first) % others:
            return None
        start = first + (place - 1) * rows if place else 0
        return self._stored(whole).part(start, start + rows)

    def _stored(self, name: str) -> Packed:
        bits = self._bits[name]
        return Packed(bits=bits, codes=self._codes(name), scales=self._scales(name))

    def _codes(self, name: str) -> npt.NDArray[np.uint8]:
        place = self._places[f"{name}.q{self._bits[name]}"]
        path = self._folder / place.file
        return np.memmap(path, np.uint8, "r", place.offset, place.shape)

    def _scales(self, name: str) -> npt.NDArray[np.float16]:
        place = self._places[f"{name}.scales"]
        path, kind = self._folder / place.file, np.dtype("<f2")
        return np.asarray(np.memmap(path, kind, "r", place.offset, place.shape), np.float16)

"""The header of a GGUF file, a stranger's: settings, and where tensors lie.

Everything is counted within bounds before it is believed: a file of 51 bytes that promises 2**61
entries keeps gguf's own reader busy for ever. No weight is read, and no library is needed.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json

SUFFIX = ".gguf"
MAX_PAIRS, MAX_TENSORS = 4096, 65_536
MAX_KEY, MAX_TEXT = 512, 2**20  # bytes: a chat template has some thousand
MAX_ITEMS = 2**22  # of one list: the largest vocabularies have a quarter of a million
MAX_DIMENSION, MAX_RANK = 2**40, 4
MAX_FACTORS = 4 * 2**16  # bytes of a tensor of rotary factors
_TEXT, _LIST = 8, 9
_NUMBERS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
# Types of tensors (ggml.h) that are read: name, weights in a block, bytes of it.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
_OTHER_TYPES = {
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
_AGAIN = "download or copy it again"
_NOT_TEXT = "has a header whose text is not UTF-8"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a GGUF: ``kind`` is ggml's type, ``shape`` rows first, ``offset`` in bytes from
    the start of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself: ``settings`` by their keys, ``tensors`` by their names."""

    path: Path
    settings: Mapping[str, Json]
    tensors: Mapping[str, Tensor]


class _Malformed(ValueError):
    """What is wrong, to follow the file's name."""


class _Short(_Malformed):
    """The bytes end before the header does."""


class _Reader:
    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data, self.at = data, 0

    def number(self, form: str) -> Json:
        (value,) = struct.unpack(form, self.raw(struct.calcsize(form)))
        return value

    def raw(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise _Short("is cut short: its header does not end")
        self.at += count
        return self._data[self.at - count : self.at]

    def text(self, most: int = MAX_TEXT) -> str:
        length = self.number("<Q")
        if length > most:
            raise _Malformed(f"has a text of {length} bytes in its header")
        return self.raw(length).decode("utf-8")

    def key(self) -> str:
        key = self.text(MAX_KEY)
        if not key or not key.isprintable():
            raise _Malformed("has a name in its header that does not print")
        return key

    def value(self, kind: int) -> Json:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self._list()
        if kind not in _NUMBERS:
            raise _Malformed(f"has a setting of the unknown kind {kind}")
        number = self.number(_NUMBERS[kind])
        if isinstance(number, float) and not math.isfinite(number):
            raise _Malformed("has a setting that is no number (NaN), or infinite")
        return number

    def _list(self) -> list[Json]:
        kind, count = self.number("<I"), self.number("<Q")
        if count > MAX_ITEMS:
            raise _Malformed(f"has a list of {count} values in its header")
        if kind == _TEXT:
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise _Malformed(f"has a list of the unknown kind {kind}")
        form = _NUMBERS[kind]
        raw = self.raw(count * struct.calcsize(form))
        return [value for (value,) in struct.iter_unpack(form, raw)]

    def tensor(self) -> Tensor:
        name, rank = self.key(), self.number("<I")
        if not 0 < rank <= MAX_RANK:
            raise _Malformed(f"has a tensor of {rank} dimensions, `{name}`")
        sizes = [self.number("<Q") for _ in range(rank)]
        number, offset = self.number("<I"), self.number("<Q")
        if not all(0 < size <= MAX_DIMENSION for size in sizes) or math.prod(sizes) > 2**44:
            raise _Malformed(f"has a tensor of an impossible shape, `{name}`")
        if number not in TYPES:
            known = ", ".join(kind for kind, *_ in TYPES.values())
            what = _OTHER_TYPES.get(number, f"number {number}")
            raise _Malformed(f"stores `{name}` in the type {what}; those that are read are {known}")
        kind, block, size = TYPES[number]
        if sizes[0] % block:
            raise _Malformed(f"has a tensor whose rows are no blocks of {kind}, `{name}`")
        return Tensor(
            name=name,
            kind=kind,
            shape=tuple(reversed(sizes)),
            offset=offset,
            size_bytes=math.prod(sizes) // block * size,
        )


def is_one(path: Path) -> bool:
    """Whether ``path`` names a file of this kind, no folder."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def alone_in(folder: Path) -> Path:
    """The one GGUF that ``folder`` holds and nothing else; else ``folder`` itself."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 and is_one(files[0]) else folder


def read(path: Path, size: int | None = None) -> Header:
    """The header of the GGUF at ``path``, which may be the start of a file of ``size`` bytes.

    Raises:
        SourceError: it is none, is cut short, or its header is beyond all bounds.
    """
    try:
        size = path.stat().st_size if size is None else size
        with path.open("rb") as stream:
            json_files.refuse_pointer(stream.read(json_files.POINTER_BYTES), path)
            if size < 24:
                raise _Malformed(f"is no GGUF file ({size} bytes)")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(path, _Reader(data), size)
    except UnicodeDecodeError:
        raise SourceError(f"`{path}` {_NOT_TEXT}", hint=_AGAIN) from None
    except _Malformed as error:
        raise SourceError(f"`{path}` {error}", hint=_AGAIN) from None


def begun(path: Path, data: bytes, size: int) -> Header | None:
    """The header of the file of ``size`` bytes that begins with ``data``; None where more of it is
    needed. ``path`` is where errors say it is.

    Raises:
        SourceError: as ``read``.
    """
    try:
        return _header(path, _Reader(data), size)
    except _Short as error:
        if len(data) < size:
            return None
        raise SourceError(f"`{path}` {error}", hint=_AGAIN) from None
    except UnicodeDecodeError:
        raise SourceError(f"`{path}` {_NOT_TEXT}", hint=_AGAIN) from None
    except _Malformed as error:
        raise SourceError(f"`{path}` {error}", hint=_AGAIN) from None


def _header(path: Path, reader: _Reader, size: int) -> Header:
    if reader.raw(4) != b"GGUF":
        raise _Malformed("is no GGUF file")
    version, count, pairs = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
    if version not in (2, 3):
        raise _Malformed(f"is GGUF of version {version}; versions 2 and 3 are read")
    if count > MAX_TENSORS or pairs > MAX_PAIRS:
        raise _Malformed(f"promises {count} tensors and {pairs} settings, more than any model has")
    settings: dict[str, Json] = {}
    for _ in range(pairs):
        key = reader.key()
        if key in settings:
            raise _Malformed(f"has the setting `{key}` twice")
        settings[key] = reader.value(reader.number("<I"))
    listed = [reader.tensor() for _ in range(count)]
    step = settings.get("general.alignment", 32)
    if type(step) is not int or not 0 < step <= 2**16:
        raise _Malformed("has an alignment that is none")
    start = -(-reader.at // step) * step
    return Header(path=path, settings=settings, tensors=_placed(listed, start, size))


def _placed(listed: list[Tensor], start: int, size: int) -> dict[str, Tensor]:
    """The tensors by name, their offsets from the start of the file of ``size`` bytes."""
    placed: dict[str, Tensor] = {}
    end = 0
    for tensor in sorted(listed, key=lambda tensor: tensor.offset):
        if tensor.name in placed:
            raise _Malformed(f"has the tensor `{tensor.name}` twice")
        if tensor.offset < end:
            raise _Malformed(f"has tensors that overlap, up to `{tensor.name}`")
        end = tensor.offset + tensor.size_bytes
        if start + end > size:
            raise _Malformed(f"is cut short: `{tensor.name}` ends at {start + end} of {size} bytes")
        placed[tensor.name] = Tensor(
            name=tensor.name,
            kind=tensor.kind,
            shape=tensor.shape,
            offset=start + tensor.offset,
            size_bytes=tensor.size_bytes,
        )
    return placed


def beside(path: Path, name: str) -> Path:
    """Where the content of the tensor ``name`` lies if ``path`` is only the start of its file."""
    return path.with_name(f"{path.name}.{name}")


def floats(header: Header, name: str) -> list[float]:
    """The numbers of the F32 tensor ``name``, such as rotary factors; none are there if it is not.
    Where the file is the start of one, they may lie beside it (``beside``).

    Raises:
        SourceError: it is of another type, or larger than such factors are.
    """
    tensor = header.tensors.get(name)
    if tensor is None:
        return []
    if tensor.kind != "F32" or tensor.size_bytes > MAX_FACTORS:
        raise SourceError(f"`{header.path}` has factors that are none, `{name}`", hint=_AGAIN)
    apart = beside(header.path, name)
    with (apart if apart.is_file() else header.path).open("rb") as stream:
        stream.seek(0 if apart.is_file() else tensor.offset)
        raw = stream.read(tensor.size_bytes)
    if len(raw) < tensor.size_bytes:
        raise SourceError(f"`{header.path}` is cut short: `{name}` is not in it", hint=_AGAIN)
    return [value for (value,) in struct.iter_unpack("<f", raw)]

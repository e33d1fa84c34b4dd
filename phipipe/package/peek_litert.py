"""What LiteRT's files ask for beyond themselves: operators of other libraries, weights in other
files.

Flatbuffers, of which only the tables that name operators are read, from the mapped file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

MAX_OPERATORS = 4096
MAX_SECTIONS = 64
MAGIC, MODEL_MAGIC = b"LITERTLM", b"TFL3"
BEGIN, END_AT = 32, 24  # of a bundle's header: where it begins, and where it says that it ends
# Of a bundle: model, tokenizers, LiteRT-LM's own settings. Others could be anything.
_MODEL_SECTION, _SECTIONS = 3, frozenset({3, 4, 5, 6})
_CUSTOM = 32  # TensorFlow Lite's number of operators that a library brings


class _Buffer:
    """A flatbuffer between two places of a file; every access is checked."""

    def __init__(self, data: mmap.mmap, start: int, end: int) -> None:
        if not 0 <= start < end <= len(data):
            raise ValueError("a part lies beyond its end")
        self.data, self.start, self.end = data, start, end

    def number(self, form: str, at: int) -> int:
        if not 0 <= at <= self.end - self.start - struct.calcsize(form):
            raise ValueError("it is cut short")
        (value,) = struct.unpack_from(form, self.data, self.start + at)
        return int(value)

    def root(self) -> int:
        return self.number("<I", 0)

    def field(self, table: int, index: int) -> int | None:
        """Where field ``index`` of the table lies; None if it is left out."""
        described = table - self.number("<i", table)
        place = 4 + 2 * index
        if place + 2 > self.number("<H", described):
            return None
        offset = self.number("<H", described + place)
        return table + offset if offset else None

    def follow(self, at: int) -> int:
        return at + self.number("<I", at)

    def tables(self, at: int | None, most: int) -> Iterator[int]:
        if at is None:
            return
        vector = self.follow(at)
        count = self.number("<I", vector)
        if count > most:
            raise ValueError(f"a list of {count} parts")
        for i in range(count):
            yield self.follow(vector + 4 + 4 * i)

    def text(self, at: int) -> str:
        start = self.follow(at)
        length = min(self.number("<I", start), 200)
        self.number("<B", start + 3 + length)
        first = self.start + start + 4
        return self.data[first : first + length].decode("utf-8", "replace")


def problems(path: Path) -> list[str]:
    """Phrases, to follow the file's name, on what the model or bundle ``path`` asks for that a
    package must not."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:8] != MAGIC:
            return list(_model(_Buffer(data, 0, len(data))))
        end = int.from_bytes(data[END_AT : END_AT + 8], "little")
        phrases: list[str] = []
        for kind, first, last in _sections(_Buffer(data, BEGIN, min(end, len(data)))):
            if kind not in _SECTIONS:
                phrases.append(f"has a part of a kind ({kind}) that phipipe never writes")
            elif kind == _MODEL_SECTION:
                phrases += _model(_Buffer(data, first, last))
        return phrases


def _sections(header: _Buffer) -> Iterator[tuple[int, int, int]]:
    """(kind, first byte, byte after the last) of every part of a bundle."""
    described = header.field(header.root(), 1)
    if described is None:
        raise ValueError("it has no parts")
    for section in header.tables(header.field(header.follow(described), 0), MAX_SECTIONS):
        first, last, kind = (header.field(section, index) for index in (1, 2, 3))
        yield (
            0 if kind is None else header.number("<B", kind),
            0 if first is None else header.number("<Q", first),
            0 if last is None else header.number("<Q", last),
        )


def _model(buffer: _Buffer) -> Iterator[str]:
    if buffer.data[buffer.start + 4 : buffer.start + 8] != MODEL_MAGIC:
        yield "holds no TensorFlow Lite model"
        return
    model = buffer.root()
    for operator in buffer.tables(buffer.field(model, 1), MAX_OPERATORS):
        old, name, new = (buffer.field(operator, index) for index in (0, 1, 3))
        code = max(
            0 if old is None else buffer.number("<b", old),
            0 if new is None else buffer.number("<i", new),
        )
        if code == _CUSTOM or name is not None:
            shown = "without a name" if name is None else ascii(buffer.text(name))[1:-1]
            yield f"has operators of another library (`{shown}`)"
    if any(buffer.field(model, index) is not None for index in (8, 9)):
        yield "reads weights from other files"

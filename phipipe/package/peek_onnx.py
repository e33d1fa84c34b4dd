"""What an ONNX file asks for beyond itself: files with weights, operators of other libraries,
compiled contexts.

Protocol buffers, read field by field from the mapped file; weights are stepped over. Nothing of it
is kept.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from phipipe.files import file_names, json_files

MAX_FIELDS = 4_000_000
MAX_LEVELS = 24
MAX_NUMBER = 2**29  # of a field, as protocol buffers have it
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
CONTEXT = "EPContext"
_NAME_BYTES = 4096
# Field numbers of onnx.proto, by message: those that are followed.
_MODEL = {7: "graph", 14: "property", 20: "training", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION = {7: "node", 11: "attribute"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": _MODEL,
    "graph": _GRAPH,
    "function": _FUNCTION,
    "node": {5: "attribute"},
    "attribute": _ATTRIBUTE,
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


class _Reader:
    """Walks one file; ``problems`` is what was found."""

    def __init__(self, data: mmap.mmap, allowed: Callable[[str], bool], contexts: bool) -> None:
        self._data, self._allowed, self._contexts, self._left = data, allowed, contexts, MAX_FIELDS
        self.problems: dict[str, None] = {}

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, first byte, byte after the last) of each field; of numbers, both are the
        value."""
        at = start
        while at < end:
            self._left -= 1
            if not self._left:
                raise ValueError(f"more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < MAX_NUMBER:  # readers of 32 bits would take it for another one
                raise ValueError("a field of no possible number")
            if kind == 0:
                value, at = self._varint(at, end)
                yield number, value, value
            elif kind == 2:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise ValueError("a field is longer than what it lies in")
                yield number, at, at + length
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise ValueError("a field of no known kind")
        if at != end:
            raise ValueError("a field is longer than what it lies in")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("a number is cut short")

    def _text(self, start: int, end: int) -> str:
        return self._data[start : min(end, start + _NAME_BYTES)].decode("utf-8", "replace")

    def read(self, kind: str, start: int, end: int, level: int = 0) -> None:
        if level > MAX_LEVELS:
            raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
        inside, texts = _INSIDE.get(kind, {}), {}
        for number, first, last in self._fields(start, end):
            texts[number] = (first, last)
            if (inner := inside.get(number)) == "training":
                self._complain("holds a training graph, which phipipe never writes")
            elif inner == "property":
                self._property(first, last)
            elif inner == "entry":
                self._external(first, last)
            elif inner:
                self.read(inner, first, last, level + 1)
        if kind == "node":
            self._node(texts, start, end)

    def _complain(self, phrase: str) -> None:
        self.problems.setdefault(phrase)

    def _pair(self, start: int, end: int) -> tuple[str, str]:
        texts = {
            number: self._text(*place)
            for number, *place in self._fields(start, end)
            if number in (1, 2)
        }
        return texts.get(1, ""), texts.get(2, "")

    def _property(self, start: int, end: int) -> None:
        key, _ = self._pair(start, end)
        if key == "ort_config":
            self._complain("carries settings of a session (`ort_config`)")

    def _external(self, start: int, end: int) -> None:
        key, value = self._pair(start, end)
        if key == "location" and not self._allowed(value):
            self._complain(
                f"reads weights from `{json_files.shown(value)}`, which is no file of the package"
            )

    def _node(self, places: Mapping[int, tuple[int, int]], start: int, end: int) -> None:
        kind, domain = (
            self._text(*places[number]) if number in places else "" for number in (4, 7)
        )
        if domain not in DOMAINS:
            self._complain(f"has operators of another library (`{json_files.shown(domain)}`)")
        if kind == CONTEXT and not self._contexts:
            self._complain("holds a compiled graph (`EPContext`), which this backend never writes")
        elif kind == CONTEXT:
            self._context(start, end)

    def _context(self, start: int, end: int) -> None:
        for number, first, last in self._fields(start, end):
            if number != 5:
                continue
            attribute = {n: (a, b) for n, a, b in self._fields(first, last)}
            name = self._text(*attribute[1]) if 1 in attribute else ""
            if name == "ep_cache_context" and (
                4 not in attribute or not self._allowed(self._text(*attribute[4]))
            ):
                self._complain("reads a compiled graph that is no file of the package")
            if name == "embed_mode" and attribute.get(3, (0, 0))[0]:
                self._complain("holds a compiled graph itself, which phipipe never writes")


def problems(
    path: Path, name: str, files: Mapping[str, int], *, contexts: bool = False
) -> list[str]:
    """Phrases, to follow the file's name, on what the ONNX file ``path`` asks for that a package
    must not.

    ``name`` is its path in the package, ``files`` what the package holds. ``contexts``: graphs may
    be compiled ones.
    """
    folder = PurePosixPath(name).parent

    def allowed(location: str) -> bool:
        return file_names.unfit(location) is None and (folder / location).as_posix() in files

    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data, allowed, contexts)
        reader.read("model", 0, len(data))
    return list(reader.problems)

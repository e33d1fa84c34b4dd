"""What a package is measured against, as phipipe writes it: arrays whose sizes fit, ids below the
vocabulary.

``numpy`` takes more than that: arrays of objects, which are pickles, and shapes that take all
memory. A runtime may do anything with an id that it has no token for.
"""

from __future__ import annotations

import math
import re
import sys
import zipfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from phipipe.steps import Json

MAX_TOKENS = 2**22
MAX_TOP = 4096
MAX_CHATS, MAX_READINGS, MAX_IDS, MAX_TEXT = 64, 1024, 2**20, 2**20
_LITTLE = sys.byteorder == "little"
_START = 128  # bytes of the header of a small array
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<([if]4)', 'fortran_order': False, 'shape': "
    rb"\(((?:[1-9]\d{0,7},? ?){0,3})\), \} *\n"
)
_ARRAYS = {
    "vocabulary": ("i4", 0),
    "ids": ("i4", 3),
    "logp": ("f4", 3),
    "rest": ("f4", 2),
    "true": ("f4", 2),
}


def tokens(path: Path) -> Iterator[str]:
    """Phrases, to follow the file's name, on what is odd in ``tokens.npy``."""
    with path.open("rb") as stream:
        shape = _shape(stream, path.stat().st_size, "i4", 2)
        if shape is None or math.prod(shape) > MAX_TOKENS:
            yield "is no table of tokens as phipipe writes them"
        elif min(_ids(stream)) < 0:
            yield "has tokens below zero"


def likeliest(path: Path) -> Iterator[str]:
    """Phrases, to follow the file's name, on what is odd in ``top.npz``, or does not fit
    ``tokens.npy`` beside it."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        if len(archive.infolist()) != len(_ARRAYS) or entries.keys() != _ARRAYS.keys() or not plain:
            yield "is packed in a way that phipipe never writes"
            return
        shapes: dict[str, tuple[int, ...]] = {}
        most = {"vocabulary": 0, "ids": 0}
        for name, (kind, rank) in _ARRAYS.items():
            with archive.open(entries[name]) as stream:
                shape = _shape(stream, entries[name].file_size, kind, rank)
                ids = _ids(stream) if shape is not None and name in most else None
            if shape is None:
                yield f"has no array `{name}` as phipipe writes it"
                return
            shapes[name] = shape
            if ids is not None:
                most[name] = max(ids)
            if ids is not None and min(ids) < 0:
                yield f"has numbers below zero (`{name}`)"
    yield from _fit(path, shapes, most)


def _fit(
    path: Path, shapes: Mapping[str, tuple[int, ...]], most: Mapping[str, int]
) -> Iterator[str]:
    beside, rows = path.with_name("tokens.npy"), shapes["rest"]
    if shapes["ids"] != shapes["logp"] or shapes["ids"][:2] != rows or shapes["true"] != rows:
        yield "has arrays that do not fit each other"
    if shapes["ids"][2] > MAX_TOP or most["ids"] >= most["vocabulary"]:
        yield "names tokens that its vocabulary does not have"
    if not beside.is_file():
        return
    with beside.open("rb") as stream:
        shape = _shape(stream, beside.stat().st_size, "i4", 2)
        if shape is None:
            return  # told of that file itself
        if shape != (rows[0], rows[1] + 1):
            yield "does not fit `tokens.npy` beside it"
        elif max(_ids(stream)) >= most["vocabulary"]:
            yield "has a smaller vocabulary than `tokens.npy` beside it uses"


def _shape(stream: IO[bytes], size: int, kind: str, rank: int) -> tuple[int, ...] | None:
    """The shape of the array in ``stream``, of ``size`` bytes with its header; None if it is not of
    this kind."""
    header = _HEADER.fullmatch(stream.read(_START))
    shape = tuple(int(number) for number in re.findall(rb"\d+", header[2])) if header else ()
    if (
        header is None
        or header[1].decode() != kind
        or len(shape) != rank
        or math.prod(shape) * 4 + _START != size
    ):
        return None
    return shape


def _ids(stream: IO[bytes]) -> array[int]:
    """The rest of ``stream``, int32 each."""
    numbers = array("i", stream.read())
    if not _LITTLE:
        numbers.byteswap()
    return numbers


def baseline(written: Mapping[str, Json]) -> Iterator[str]:
    """Phrases, to follow the file's name, on what is odd in ``baseline.json``."""
    skip, chats = written.get("skip"), written.get("chats")
    if not _is_id(skip) or not _are_ids(written.get("parity_ids")):
        yield "has no `skip` or no `parity_ids` as phipipe writes them"
    if (
        not isinstance(chats, list)
        or len(chats) > MAX_CHATS
        or not all(_is_chat(chat) for chat in chats)
    ):
        yield "has no `chats` as phipipe writes them"
    readings = written.get("readings", [])
    if (
        not isinstance(readings, list)
        or len(readings) > MAX_READINGS
        or not all(_is_reading(reading) for reading in readings)
    ):
        yield "has no `readings` as phipipe writes them"


def _is_reading(reading: object) -> bool:
    return (
        isinstance(reading, dict)
        and reading.get("kind") in ("text", "chat")
        and isinstance(reading.get("text"), str)
        and len(reading["text"]) <= MAX_TEXT
        and _are_ids(reading.get("ids"))
    )


def _is_chat(chat: object) -> bool:
    if (
        not isinstance(chat, dict)
        or not _are_ids(chat.get("ids"))
        or not _are_ids(chat.get("answer"))
    ):
        return False
    texts = (chat.get(name) for name in ("prompt", "rendered", "text"))
    return bool(chat["ids"]) and all(
        isinstance(text, str) and len(text) <= MAX_TEXT for text in texts
    )


def _are_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_IDS
        and all(_is_id(number) for number in value)
    )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31

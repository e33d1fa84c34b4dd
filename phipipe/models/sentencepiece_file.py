"""The pieces in a ``tokenizer.model``, read without SentencePiece.

The file is a protocol buffer, ``ModelProto`` of SentencePiece's ``sentencepiece_model.proto``: its
field 1, once for each piece, is a message whose field 1 is the text. All else is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files

MAX_BYTES = 2**26
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE = _TEXT = 1  # numbers of fields


def pieces(path: Path) -> list[str]:
    """The texts of all pieces, by their ids.

    Raises:
        SourceError: the file is damaged, or no such file.
    """
    raw = json_files.read_bytes(path, MAX_BYTES)
    try:
        found = [_text(part) for number, part in _fields(raw) if number == _PIECE]
    except (IndexError, ValueError):
        found = []
    if not found:
        raise SourceError(
            f"`{path}` is damaged: it holds no pieces as SentencePiece writes them",
            hint="take all tokenizer files from one place, best the original repository",
        )
    return found


def _text(message: bytes) -> str:
    texts = [part for number, part in _fields(message) if number == _TEXT]
    return texts[0].decode("utf-8") if texts else ""


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each field that has a length; the others are passed over."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _varint(raw, at)
            if at + length > len(raw):
                raise ValueError("cut short")
            yield key >> 3, raw[at : at + length]
            at += length
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("a field of an unknown kind")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(value, where the next thing starts): 7 bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

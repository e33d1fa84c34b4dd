"""SentencePiece's own file, written without its library: a protocol buffer
(sentencepiece_model.proto)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

_BYTE = 6  # the kind of a piece that stands for a byte
_IDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}


def model(
    pieces: Sequence[tuple[str, float, int]], ids: Mapping[str, int], *, prefix: bool
) -> bytes:
    """A model of byte pairs. ``pieces``: text, score and kind of each; ``ids``: the numbers of
    "unk", "bos", "eos" and "pad", -1 for none; ``prefix``: a space before each text."""
    raw = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _whole(3, kind))
        for text, score, kind in pieces
    )
    bytewise = any(kind == _BYTE for *_, kind in pieces)
    trainer = _whole(3, 2) + _whole(4, len(pieces)) + _whole(35, int(bytewise))
    trainer += b"".join(_whole(field, ids[name]) for name, field in _IDS.items())
    flags = _whole(3, int(prefix)) + _whole(4, 0) + _whole(5, 1)
    return raw + _field(2, trainer) + _field(3, _field(1, b"identity") + flags)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _whole(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    return bytes(_septets(value))


def _septets(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value

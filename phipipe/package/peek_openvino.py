"""What an OpenVINO graph asks for beyond itself: operators of other libraries, bytes that its
weights do not have.

Read as a stream by expat, which keeps nothing. A document type, from which entities and other files
come, is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from phipipe.files.json_files import shown

MAX_BYTES = 2**28
MAX_ELEMENTS = 10_000_000
MAX_LEVELS = 64
_CHUNK = 2**20
_OPSET = re.compile(r"opset\d{1,3}")
_PARTS = frozenset({"layers", "edges", "rt_info"})
# Those of OpenVINO's own library for tokenizers, which openvino-genai brings.
TOKENIZING = frozenset(
    {
        "BPETokenizer",
        "ByteFallback",
        "BytesToChars",
        "CaseFold",
        "CharsMapNormalization",
        "CharsToBytes",
        "CombineSegments",
        "EqualStr",
        "FuzeRagged",
        "NormalizeUnicode",
        "RaggedToDense",
        "RaggedToRagged",
        "RaggedToSparse",
        "RegexNormalization",
        "RegexSplit",
        "SentencepieceDetokenizer",
        "SentencepieceStreamDetokenizer",
        "SentencepieceTokenizer",
        "SpecialTokensSplit",
        "StringTensorPack",
        "StringTensorUnpack",
        "StringToHashBucket",
        "TrieTokenizer",
        "Truncate",
        "UTF8Validate",
        "UnigramTokenizer",
        "VocabDecoder",
        "VocabEncoder",
        "WordpieceTokenizer",
    }
)


class _Reader:
    def __init__(self, weights: int, tokenizing: bool) -> None:
        self._weights, self._tokenizing, self._level, self._count, self._kind = (
            weights,
            tokenizing,
            0,
            0,
            "",
        )
        self.problems: dict[str, None] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._level, self._count = self._level + 1, self._count + 1
        if self._level > MAX_LEVELS or self._count > MAX_ELEMENTS:
            raise ValueError("it is nested too deep, or has too many parts")
        if self._level == 1 and name != "net":
            raise ValueError("it is no OpenVINO graph")
        if self._level == 2 and name not in _PARTS:
            self.problems.setdefault(f"has a part that phipipe never writes (`{shown(name)}`)")
        if name == "layer":
            self._layer(attributes)
        elif name == "data" and self._kind == "Const":
            self._constant(attributes)

    def end(self, name: str) -> None:
        self._level -= 1

    def _layer(self, attributes: dict[str, str]) -> None:
        self._kind = kind = attributes.get("type", "")
        version = attributes.get("version", "")
        if version == "extension" and self._tokenizing and kind in TOKENIZING:
            return
        if not _OPSET.fullmatch(version):
            self.problems.setdefault(
                f"has operators of another library (`{shown(kind)}` of `{shown(version)}`)"
            )

    def _constant(self, attributes: dict[str, str]) -> None:
        places = [attributes.get(name, "0") for name in ("offset", "size")]
        if (
            not all(re.fullmatch(r"\d{1,18}", place) for place in places)
            or sum(map(int, places)) > self._weights
        ):
            self.problems.setdefault("reads beyond the end of its weights")


def problems(path: Path, weights: int, *, tokenizing: bool) -> list[str]:
    """Phrases, to follow the file's name, on what the graph ``path`` asks for that a package must
    not.

    ``weights`` is the size of the file with its weights. ``tokenizing``: it may use the library for
    tokenizers.
    """
    if path.stat().st_size > MAX_BYTES:
        return [f"is larger than {MAX_BYTES} bytes, as no graph is"]
    reader = _Reader(weights, tokenizing)
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _no_document_type
    parser.ExternalEntityRefHandler = None
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML ({expat.ErrorString(error.code)})") from None
    return list(reader.problems)


def _no_document_type(*_: object) -> NoReturn:
    raise ValueError("it has a document type, which could name files or grow without end")

"""``tokenizer.json`` as it stands, without what transformers makes of it.

Imported in toolchains alone, in limited children.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer


class FileTokenizer:
    """What the file describes; its truncation and padding, leftovers of training, are left out."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; with ``special``, those that the file adds to every text too."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def opened(folder: str) -> FileTokenizer:
    """``tokenizer.json`` of ``folder``, for a limited child."""
    return FileTokenizer(Path(folder) / "tokenizer.json")

"""Text that comes in pieces, and words in it that must be seen before anybody shows their
beginning."""

from __future__ import annotations

from collections.abc import Sequence


def held_back(text: str, words: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``words``."""
    longest = max((len(word) for word in words), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        end = text[-length:]
        if any(len(word) > length and word.startswith(end) for word in words):
            return length
    return 0


def first_of(text: str, words: Sequence[str]) -> int:
    """Where the first of ``words`` stands in ``text``; -1 if none does."""
    return min((at for word in words if (at := text.find(word)) >= 0), default=-1)


class Stops:
    """Ends a text before the first of ``words``, however it is cut into pieces.

    Attributes:
        found: whether one of them came.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """What can be shown now that ``piece`` has come too."""
        text = self._held + piece
        at = first_of(text, self._words)
        self.found = at >= 0
        kept = at if self.found else len(text) - held_back(text, self._words)
        self._held = "" if self.found else text[kept:]
        return text[:kept]

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held

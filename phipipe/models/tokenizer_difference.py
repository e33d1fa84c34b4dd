"""Where two tokenizers read a text differently, told by the shortest text that shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from phipipe.files.json_files import shown

Kind = Literal["text", "chat", "marks"]
Encode = Callable[[str], Sequence[int]]

MOST_TRIALS = 400  # texts that are tried while one is made shorter
SHOWN_IDS = 8


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A text (``visible``) that two tokenizers read as different ids; ``kind`` "chat": plain text
    is read alike, what a chat template writes around it is not; "marks": texts with characters that
    combine with others alone are not."""

    kind: Kind
    text: str
    expected: tuple[int, ...]
    got: tuple[int, ...]

    @property
    def words(self) -> str:
        """It for people: the text with its ids, without who reads it so."""
        where = "a chat's text" if self.kind == "chat" else "the text"
        return f"{where} `{self.text}` as tokens {_ids(self.got)}, not {_ids(self.expected)}"


def first(kind: Kind, texts: Sequence[str], expected: Encode, got: Encode) -> Difference | None:
    """The shortest of ``texts``, made as short as can be, that the two read differently."""

    def differs(text: str) -> bool:
        return list(expected(text)) != list(got(text))

    found = next((text for text in sorted(texts, key=len) if differs(text)), None)
    if found is None:
        return None
    text = shortened(differs, found)
    return Difference(kind=kind, text=visible(text), expected=(*expected(text),), got=(*got(text),))


def shortened(shows: Callable[[str], bool], text: str) -> str:
    """``text`` without whatever is not needed for it to show the difference: stretches of it are
    left out, long ones first (delta debugging; Zeller & Hildebrandt 2002)."""
    trials, size = 0, max(len(text) // 2, 1)
    while trials < MOST_TRIALS:
        start, before = 0, len(text)
        while start < len(text) and trials < MOST_TRIALS:
            shorter = text[:start] + text[start + size :]
            trials += 1
            if shorter and shows(shorter):
                text = shorter
            else:
                start += size
        if size == 1 and len(text) == before:
            break
        size = max(size // 2, 1)
    return text


def visible(text: str) -> str:
    """``text`` on one line, its line breaks and tabs as a programmer writes them."""
    written = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return shown(written.replace("\r", "\\r"))


def _ids(ids: Sequence[int]) -> str:
    more = ["…"] if len(ids) > SHOWN_IDS else []
    return "[" + ", ".join([*map(str, ids[:SHOWN_IDS]), *more]) + "]"

"""A user's words in messages: shortened, quoted, and what they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_GUESSES = 5  # names that one "did you mean" has
MAX_SHOWN = 60  # characters of a user's value that a message repeats


def shorten(text: str) -> str:
    """``text`` on one line, at most ``MAX_SHOWN`` characters of it."""
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def near(word: str, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` where one of ``known`` is close to ``word``, or some begin with it;
    else nothing."""
    known = list(known)
    guesses = [name for name in known if len(word) > 1 and name.startswith(word)]
    if not 0 < len(guesses) <= MAX_GUESSES:
        guesses = difflib.get_close_matches(word[:200], known, 1, 0.6)
    if not guesses:
        return ""
    *others, last = (f"`{name}`" for name in guesses)
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def show(value: object) -> str:
    """A user's value as a message repeats it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"text `{shorten(value)}`" if isinstance(value, str) else f"`{shorten(str(value))}`"

"""What a plain scalar of YAML means: YAML 1.2's core schema, in which ``no`` is text."""

from __future__ import annotations

import re

Scalar = str | int | float | None
MAX_DIGITS = 300  # of a number; longer ones are typing accidents, and slow to read

# YAML 1.2.2, 10.3.2: the core schema's tag resolution.
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = r"[-+]?[0-9]+"
_BASED = r"0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_SPECIAL = r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
_NUMBER = "|".join((_INT, _BASED, _FLOAT, _SPECIAL))
_FIRST = frozenset("+-.0123456789")  # of a number


def resolve(text: str) -> Scalar:
    """A plain scalar's value by YAML 1.2's core schema.

    Raises:
        OverflowError: a number longer than ``MAX_DIGITS``.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in _FIRST and re.fullmatch(_NUMBER, text):
        return _number(text)
    return text


def is_text(text: str) -> bool:
    """Whether ``text`` is text where it stands without quotes; a number that is too long to be read
    is none."""
    try:
        return isinstance(resolve(text), str)
    except OverflowError:
        return False


def _number(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise OverflowError
    if re.fullmatch(_INT, text):
        return int(text)
    if re.fullmatch(_BASED, text):
        return int(text, 0)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

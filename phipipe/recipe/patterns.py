"""Mappings of patterns, in which the first that matches decides: how one is laid on another, and
how a single one is named."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from phipipe.recipe.absent import NONE
from phipipe.steps import Json
from phipipe.suggestions import near, shorten

SECTION, MAP = "quantize", "map"
ENTRIES: Mapping[str, Sequence[str]] = {MAP: ("bits", "group_size"), "tensors": ()}
"""Options that map patterns, and the keys that an entry may have."""


def laid(base: Mapping[str, Json], over: Mapping[str, Json], option: str = MAP) -> dict[str, Json]:
    """Patterns of ``over``, which would decide nothing behind a wildcard of ``base``, then those of
    ``base`` but for the ones that they cover. Values are taken as they are. Of other options than
    ``map`` patterns are regular expressions, of which one covers itself alone."""
    deciding = [pattern for pattern, value in over.items() if value != NONE and option == MAP]
    kept = {
        pattern: value
        for pattern, value in base.items()
        if pattern not in over and not any(covers(one, pattern) for one in deciding)
    }
    return {**over, **kept}


def covers(pattern: str, other: str) -> bool:
    """Whether ``pattern`` is sure to match all that the pattern ``other`` does. (A `*` takes any
    text, that of another wildcard, too; `?` and `[…]` take one character, and a `*` stands for
    more.)"""
    return pattern == other or (
        not set(pattern) & set("?[") and fnmatch.fnmatchcase(other, pattern)
    )


def whole(where: tuple[str, ...]) -> tuple[str, ...]:
    """The dotted key ``where`` of the command line, with a pattern's own dots as part of it."""
    if where[:1] != (SECTION,) or len(where) < 3 or where[1] not in ENTRIES:
        return where
    _, option, *named = where
    inner = tuple(named[-1:]) if len(named) > 1 and named[-1] in ENTRIES[option] else ()
    return (SECTION, option, ".".join(named[: len(named) - len(inner)]), *inner)


def stray(option: str, pattern: str, there: Sequence[str]) -> str:
    """What to say of a ``pattern`` that is to be taken back, where those ``there`` are others."""
    message = f"`{SECTION}.{option}` has no `{shorten(pattern)}` to take back"
    listed = ", ".join(f"`{shorten(one)}`" for one in there) or "nothing"
    return f"{message}{near(pattern, there) or f'; there is {listed}'}"


def taken_back(over: Json, base: Json) -> list[tuple[str, str, list[str]]]:
    """Entries that the options ``over`` take back though those of ``base`` have none: option,
    pattern, and the patterns that there are."""
    found = []
    for option in ENTRIES:
        there = of(base, option)
        entries = over.get(option) if isinstance(over, dict) else None
        for pattern, value in entries.items() if isinstance(entries, dict) else ():
            if value == NONE and pattern not in there:
                found.append((option, pattern, there))
    return found


def of(options: Json, option: str) -> list[str]:
    """The patterns that ``option`` has a value for."""
    entries = options.get(option) if isinstance(options, dict) else None
    if not isinstance(entries, dict):
        return []
    return [pattern for pattern, value in entries.items() if value != NONE]

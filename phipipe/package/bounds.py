"""Bounds of what a manifest may hold: of every text and number in it, and of the kinds of values
that phipipe uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from phipipe.evaluate import reports

MAX_TEXT = 100_000  # characters of one text
MAX_LEVELS = 24
MAX_NUMBER = 1e18
SMALLEST = 1e-60  # below what 32-bit floats hold; nearer to zero, ratios of figures overflow
# Control characters but line ends and tabs, halves of surrogate pairs, and signs that turn the
# direction of writing.
_REFUSED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
# what models said: any characters; cards escape them, and nothing else shows them
SAID = "fidelity.vision.answers."
_TOO_DEEP = object()


def line(text: str) -> str:
    """Text of one line, all of which can be printed."""
    if not text.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return text


def _figure(number: float) -> float:
    if 0 < number < SMALLEST:
        raise ValueError("it is too small a number")
    return number


def plain(name: str) -> str:
    """The name of a file or device, without folders."""
    if re.search(r"[\\/]", name):
        raise ValueError("it is no plain name")
    return name


Line = Annotated[str, Field(max_length=1000), AfterValidator(line)]
Key = Annotated[str, Field(max_length=200), AfterValidator(line)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Figure = Annotated[float, Field(ge=0, le=MAX_NUMBER), AfterValidator(_figure)]
Share = Annotated[float, Field(gt=1e-12, le=1e12)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Figures = Annotated[dict[Key, Figure], Field(max_length=200)]
Curve = Annotated[list[Figure], Field(max_length=10_000)]


class Part(reports.Report):
    """A part of a manifest. What a later phipipe may have added is left alone."""

    model_config = ConfigDict(allow_inf_nan=False)


def unfit(manifest: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(dotted path, what is wrong there) for every value beyond the bounds on text and numbers."""
    for where, value in _leaves(manifest):
        if reason := _reason(value, by_model=where.startswith(SAID)):
            yield where, reason


def _leaves(value: object) -> Iterator[tuple[str, object]]:
    """(dotted path, value) of every key and every value that holds no others, and of what is nested
    too deep."""
    waiting: list[tuple[str, int, object]] = [("", 0, value)]
    while waiting:
        where, level, inner = waiting.pop()
        if level > MAX_LEVELS:
            yield where, _TOO_DEEP
        elif isinstance(inner, Mapping):
            for key, one in inner.items():
                path = f"{where}.{key}" if where else str(key)
                yield path, str(key)
                waiting.append((path, level + 1, one))
        elif isinstance(inner, list):
            waiting += [(where, level + 1, one) for one in inner]
        else:
            yield where, inner


def _reason(value: object, by_model: bool) -> str | None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f"is a text of more than {MAX_TEXT} characters"
        odd = not by_model and _REFUSED.search(value)
        return "holds characters that no text of phipipe's has" if odd else None
    if value is _TOO_DEEP:
        return f"is nested deeper than {MAX_LEVELS} levels"
    if isinstance(value, int | float) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        return "is too large a number"
    return None

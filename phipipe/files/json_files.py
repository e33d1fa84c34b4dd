"""JSON that strangers wrote: read within bounds, by RFC 8259 to the letter, or refused in one
sentence.

Python's own reader takes ``NaN`` and ``Infinity``, keeps the last of doubled keys, makes ``inf`` of
1e400 and numbers of any length: what comes out of here has none of that.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from phipipe.errors import SourceError

MAX_BYTES = 64 * 2**20  # the largest tokenizer.json of the field has about 35 MB
MAX_DEPTH = 64
MAX_DIGITS = 40  # of a whole number; 2**128 has 39
# Text that never ends counts as text, or looking for each quote's partner would take the square of
# the length.
_QUOTED = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NESTING = re.compile(rb"[\[\]{}]")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character beyond U+FFFF; two make one
POINTER_BYTES = 1024  # as git-lfs has it, a pointer is shorter
# what some editors begin UTF-8 and UTF-16 with
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_HINT = "correct it there, or take the file again from where it came from"
_POINTER = b"version https://git-lfs.github.com/"
MAX_SHOWN = 120  # characters of a stranger's text in a message


class _Unfit(ValueError):
    """Valid for Python's reader, not for us."""


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        SourceError: it is missing, no plain file, too large, or not the JSON described above.
    """
    value = parse(read_bytes(path, max_bytes), path)
    if not isinstance(value, dict):
        raise SourceError(f"`{path}` holds no JSON object", hint=_HINT)
    return value


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of the plain file ``path``; never waits for a pipe or reads a device.

    Raises:
        SourceError: it is missing, no plain file, or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"`{path}` is no plain file")
        if status.st_size > max_bytes:
            raise SourceError(
                f"`{path}` is too large: {status.st_size} bytes, at most {max_bytes} make sense"
            )
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise SourceError(
            f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}"
        ) from None
    refuse_pointer(raw[:100], path)
    return raw[:max_bytes]


def refuse_pointer(raw: bytes, path: Path) -> None:
    """Refuse a file of which git left a pointer to its content alone; ``raw`` is how ``path``
    starts.

    Raises:
        SourceError: it is one.
    """
    if raw.startswith(_POINTER):
        raise SourceError(
            f"`{path}` is a git-lfs pointer, not the file itself",
            hint=f"run `git lfs pull` in `{path.parent}`",
        )


def shown(text: str) -> str:
    """A stranger's ``text`` for a message: short, and nothing in it that a terminal would act
    on."""
    short = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return short if short.isprintable() else ascii(short)[1:-1]


def parse(raw: bytes, path: Path) -> Any:
    """The value of ``raw``, the content of ``path``.

    Raises:
        SourceError: it is not the JSON described above.
    """
    if raw.startswith(_MARKS):
        raise SourceError(
            f"`{path}` is not valid JSON: it begins with a byte-order mark",
            hint="save it as UTF-8 without one",
        )
    if not raw.strip():
        raise SourceError(f"`{path}` is not valid JSON: it is empty", hint=_HINT)
    try:
        if _depth(raw) > MAX_DEPTH:
            raise _Unfit(f"nested deeper than {MAX_DEPTH} levels")
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_once,
        )
        if _HALF.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError:
        raise SourceError(
            f"`{path}` is not valid JSON: half of a character stands alone", hint=_HINT
        ) from None
    except UnicodeDecodeError:
        raise SourceError(f"`{path}` is not valid JSON: it is not UTF-8", hint=_HINT) from None
    except ValueError as error:
        raise SourceError(f"`{path}` is not valid JSON: {error}", hint=_HINT) from None


def walk(value: object, where: str = "") -> Iterator[tuple[str, str, object]]:
    """(dotted path, key, value) for every key of a nested JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{where}.{key}" if where else str(key)
            yield path, str(key), inner
            yield from walk(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, where)


def _depth(raw: bytes) -> int:
    """How deep arrays and objects nest, brackets in text not counted."""
    deepest = depth = 0
    for sign in _NESTING.findall(_QUOTED.sub(b"", raw)):
        depth += 1 if sign in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _constant(text: str) -> NoReturn:
    raise _Unfit(f"`{text}` is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Unfit(f"`{text[:MAX_DIGITS]}` is too large a number")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Unfit(f"a number of {len(text)} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _Unfit(f"key {key[:60]!a} stands there twice")
        table[key] = value
    return table


def differences(old: object, new: object, where: str = "") -> Iterator[str]:
    """Dotted paths of the values that differ; a list counts as one value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{where}.{key}" if where else key
            if key not in old or key not in new:
                yield inner
            elif old[key] != new[key]:
                yield from differences(old[key], new[key], inner)
    else:
        yield where

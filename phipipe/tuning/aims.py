"""What a choice of widths aims at: a size, bits for each weight, or the recipe's gates."""

from __future__ import annotations

import re
from dataclasses import dataclass

from phipipe.errors import RecipeError
from phipipe.suggestions import shorten
from phipipe.visible import one_line

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LEAST_BITS, MOST_BITS = 1, 16  # of a weight
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_SIZE = re.compile(rf"({_NUMBER.pattern})\s*([A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """At most ``size_bytes`` of artifact, or so many ``bits`` a weight, or as few as the recipe's
    gates allow; without any, as many as the recipe takes today."""

    size_bytes: int | None = None
    bits: float | None = None
    by_gates: bool = False

    @property
    def as_today(self) -> bool:
        """Whether the recipe as it stands sets the size."""
        return self.size_bytes is None and self.bits is None and not self.by_gates

    def limit_bytes(self, parameters: int) -> int | None:
        """The largest size that will do for a model of so many ``parameters``; None: any."""
        if self.bits is not None:
            return int(self.bits * parameters / 8)
        return self.size_bytes

    def least(self, size_bytes: int, parameters: int) -> str:
        """The option that asks for a little more than ``size_bytes``, of a model of so many
        ``parameters``."""
        if self.bits is not None:
            return f"--bits {(800 * size_bytes // parameters + 1) / 100:.2f}"
        unit = "GiB" if size_bytes >= UNITS["GiB"] else "MiB"
        return f"--size {(100 * size_bytes // UNITS[unit] + 1) / 100:.2f}{unit}"


def size_of(text: str) -> int:
    """``2.2GiB`` in bytes. The case of the unit does not matter.

    Raises:
        RecipeError: it is no size, and why.
    """
    found = _SIZE.fullmatch(text.strip())
    units = {name.lower(): factor for name, factor in UNITS.items()}
    if not found or found[2].lower() not in units:
        raise RecipeError(
            f"`{one_line(text[:40])}` is no size: {_wrong(text.strip())}",
            hint="give a number with a unit, such as 2.2GiB or 900MB",
        )
    size_bytes = int(float(found[1]) * units[found[2].lower()])
    if size_bytes < 1:
        raise RecipeError(f"a size of `{text[:40]}` holds nothing", hint="give 1MiB or more")
    return size_bytes


def _wrong(text: str) -> str:
    """Why ``text`` is no size."""
    if text.startswith("-"):
        return "a file has no negative size"
    if _NUMBER.fullmatch(text):
        return "the unit is missing"
    if found := _SIZE.fullmatch(text):
        return f"there is no unit `{shorten(found[2])}`; there are {', '.join(UNITS)}"
    return "a number in plain digits comes first, with a point for decimals"


def asked(size: str | None, bits: float | None, *, gates: bool, builds: int) -> Aim:
    """What is asked for.

    Raises:
        RecipeError: more than one thing, a size or bits that are none, or more than one file can
            show.
        TypeError: ``size`` is no text, or ``bits`` no number.
    """
    if size is not None and not isinstance(size, str):
        raise TypeError("size is no text: give one such as 2.2GiB")
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int | float)):
        raise TypeError("bits is no number: give one such as 4.5")
    asked = {"size": size is not None, "bits": bits is not None, "gates": gates}
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise RecipeError(
            f"`{given[0]}` and `{given[1]}` exclude each other", hint="give one of them"
        )
    if bits is not None and not LEAST_BITS <= bits <= MOST_BITS:
        raise RecipeError(
            f"{bits:g} bits for a weight are none that a file has",
            hint=f"give {LEAST_BITS} to {MOST_BITS}, such as 4.5",
        )
    if not given and builds == 1:
        raise RecipeError(
            "one build leaves no file to compare the recipe's own with",
            hint="allow 2, or say how large the file may be: size, bits or gates",
        )
    return Aim(size_bytes=None if size is None else size_of(size), bits=bits, by_gates=gates)

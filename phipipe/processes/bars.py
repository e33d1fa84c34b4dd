"""Progress bars that tools draw with tqdm, heard as progress of the step that uses the tool."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Protocol

from phipipe.progress import OnProgress
from phipipe.words import MIB

FEWEST = 3  # parts of a bar that is worth telling of
BYTES = ("B", "byte", "bytes")
LONGEST = 40  # characters of a bar's own words


class Display(Protocol):
    """How a bar draws itself: its first word is the bar."""

    def __call__(self, bar: object, *words: object, **named: object) -> object: ...


def hear(listener: OnProgress) -> None:
    """From now on, hand every bar of tqdm's to ``listener``, too. Without tqdm there is nothing to
    hear."""
    with contextlib.suppress(ImportError, AttributeError):
        bar = importlib.import_module("tqdm.std").tqdm
        own = getattr(bar.display, "__wrapped__", bar.display)
        bar.display = _heard(own, listener)


def _heard(display: Display, listener: OnProgress) -> Display:
    @functools.wraps(display)
    def heard(bar: object, *words: object, **named: object) -> object:
        report = told(bar)
        if report:
            listener(*report)
        return display(bar, *words, **named)

    return heard


def told(bar: object) -> tuple[int, int, str] | None:
    """How far ``bar`` is, and what it counts; None where it does not know its end."""
    done, total = getattr(bar, "n", None), getattr(bar, "total", None)
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total < FEWEST:
        return None
    unit = str(getattr(bar, "unit", "it")).strip()
    if unit in BYTES:
        done, total, unit = done // MIB, total // MIB, "MiB"
    unit = "parts" if unit in ("it", "") else unit
    about = " ".join(str(getattr(bar, "desc", "") or "").split()).rstrip(": ")[:LONGEST]
    return min(int(done), int(total)), int(total), f"{unit} ({about})" if about else unit

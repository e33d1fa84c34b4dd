"""What a row of the table of metrics says.

A row that does not say which way is better, or of which kind it is, is an error at import: nobody
shall guess it from a name. ``reads_as`` may name words that ``package.figures`` works out from the
measurement (``WORDS``).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal, get_args

Better = Literal["lower", "higher"]
Kind = Literal["fidelity", "pictures", "answers", "size", "speed"]
WORDS = frozenset({"yardstick", "run", "original", "change", "prompt", "pictures", "asked"})


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        name: in recipes, manifests and reports.
        title: in tables, in words.
        column: at the head of a column; ``short`` where there is little room.
        meaning: one or two plain sentences: what it is, in which unit, how to read it. For the
            schema, the page's "?" and the reference.
        reads_as: what it tells, beside its value.
        unit: of the value as it is shown, which is ``factor`` times the one that is stored.
        digits: significant ones, where no standard error decides.
    """

    name: str
    title: str
    column: str
    short: str = ""
    meaning: str
    reads_as: str
    better: Better
    kind: Kind
    unit: str = ""
    factor: float = 1.0
    digits: int = 3

    def __post_init__(self) -> None:
        """Refuse a row that is not finished, before anything is measured by it."""
        if self.better not in get_args(Better):
            raise ValueError(f"metric {self.name}: better is lower or higher, not {self.better!r}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"metric {self.name}: no such kind: {self.kind!r}")
        if not all((self.name, self.title, self.column, self.meaning, self.reads_as)):
            raise ValueError(
                f"metric {self.name}: name, title, column, meaning and reads_as are words"
            )
        unknown = {
            word for _, word, _, _ in string.Formatter().parse(self.reads_as) if word
        } - WORDS
        if unknown or self.digits < 1 or not self.factor > 0:
            raise ValueError(
                f"metric {self.name}: digits, factor or words cannot be: {sorted(unknown)}"
            )

    @property
    def heading(self) -> str:
        """The head of a narrow column."""
        return self.short or self.column

    @property
    def is_size(self) -> bool:
        """Whether it counts bytes, which are shown in the unit that suits them."""
        return self.name.endswith("_gib")

    def loss(self, before: float, after: float) -> float:
        """How much worse ``after`` is than ``before``, in the stored unit; below zero where it is
        better."""
        return before - after if self.better == "higher" else after - before

"""What ``diff`` prints as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that differs, by its path; ``words`` has both cut where they part. A side is null
    where it has no such value."""

    what: str
    before: Json
    after: Json
    words: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric on both sides; null: it was not measured there.

    ``verdict``: "better" or "worse"; "same" where it did not change by more than ``limit``;
    "unlike" where the two were not taken alike; "added"; "removed". ``limit``: twice the standard
    error of the difference, or for speed the widest spread; null where neither is known.
    """

    metric: str
    before: float | None
    after: float | None
    before_stderr: float | None
    after_stderr: float | None
    limit: float | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A build on both sides: what it is made of that differs, and its figures."""

    before: str
    after: str
    inputs: list[Change]
    figures: list[Figure]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two recipes, packages or runs (``kind``); builds that are on one side only by name."""

    kind: str
    before: str
    after: str
    pairs: list[Pair]
    only_before: list[str]
    only_after: list[str]

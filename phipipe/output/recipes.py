"""What commands that write recipes print as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Started:
    """A recipe that `init` wrote; ``pinned`` is false where the hub could not be asked for its
    commit."""

    recipe: str
    name: str
    device: str
    unit: str
    backend: str
    precision: str
    pinned: bool
    next: list[str]


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A repository that was pinned: ``revision`` is what stood there."""

    repo: str
    revision: str
    commit: str

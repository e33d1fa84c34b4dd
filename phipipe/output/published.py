"""What `push` and `pull` print as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SentFile:
    """A file of the package that was not at the address: it was sent, or would be."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A package that was published. ``state``: "pushed", "same" (all of it was there) or
    "dry-run"; ``visibility``: "private", "public", or null where the place does not say;
    ``replaced``: the digest of the package that was there."""

    address: str
    package: str
    name: str
    digest: str
    state: str
    visibility: str | None
    replaced: str | None
    size_bytes: int
    files: list[SentFile]


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A package that was fetched. ``state``: "pulled" or "same" (it was there); ``attached``: what
    lies beside its manifest, such as a signature; ``renewed``: what of that was fetched for a
    package that was there; ``size_bytes``: of all that was fetched."""

    address: str
    package: str
    name: str
    digest: str
    state: str
    size_bytes: int
    attached: list[str]
    renewed: list[str]

"""A package as it travels: every file of it by its content, what is attached included."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.evaluate.reports import dump
from phipipe.files import json_files
from phipipe.hub.published import Published
from phipipe.package import manifest as manifests
from phipipe.package.manifest import MAX_BYTES
from phipipe.package.manifest_schema import Manifest
from phipipe.signing import opening
from phipipe.steps import Json
from phipipe.store import keys


@dataclass(frozen=True, order=True)
class Item:
    """A file to be sent; ``size`` in bytes."""

    path: str
    size: int
    sha256: str
    file: Path

    @property
    def published(self) -> Published:
        """It as a publisher describes it."""
        return Published(self.path, self.size, "sha256", self.sha256)


@dataclass(frozen=True)
class Sealed:
    """A package that was verified. ``items``: all its files, the manifest and what is attached
    too, by path."""

    manifest: Manifest
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """Of the package."""
        return self.manifest.digest

    @property
    def attached(self) -> tuple[Item, ...]:
        """What lies beside the manifest."""
        return tuple(item for item in self.items if item.path in papers.ATTACHED)

    @property
    def own(self) -> tuple[Item, ...]:
        """What the digest stands for: the listed files, and the manifest itself."""
        return tuple(item for item in self.items if item.path not in papers.ATTACHED)


def read(folder: Path, note: Callable[[str], None]) -> Sealed:
    """The package in ``folder``, every file of which is as it was packaged; ``note`` hears what the
    user's trust file only warns of.

    Raises:
        SourceError: it is no package, was changed, holds what phipipe never packages, or must not
            be trusted.
    """
    manifest = opening.open_(folder, note)
    return Sealed(manifest, tuple(sorted(_items(folder, manifest))))


def _items(folder: Path, manifest: Manifest) -> Iterator[Item]:
    for entry in manifest.files:
        yield Item(entry.path, entry.size, entry.sha256, folder / entry.path)
    for name in (papers.MANIFEST, *papers.ATTACHED):
        file = folder / name
        if file.is_file():
            yield Item(name, file.stat().st_size, keys.hash_file(file), file)


def described(raw: bytes) -> Mapping[str, Json] | None:
    """``raw`` as a package's manifest, itself intact; None where it is some other file. What it
    says besides is for ``read_manifest`` to judge."""
    try:
        found = json_files.parse(raw, Path(papers.MANIFEST)) if len(raw) <= MAX_BYTES else None
    except SourceError:
        return None
    if not isinstance(found, dict) or found.get("type") != manifests.TYPE:
        return None
    rest = {name: value for name, value in found.items() if name != "digest"}
    whole = hashlib.sha256(dump(rest).encode()).hexdigest() == found.get("digest")
    return found if whole else None


def entries_of(found: Mapping[str, Json]) -> list[tuple[str, str]]:
    """(path, SHA-256) of each file that a manifest lists, as far as they are texts."""
    files = found.get("files")
    rows = [row for row in files if isinstance(row, dict)] if isinstance(files, list) else []
    pairs = [(row.get("path"), row.get("sha256")) for row in rows]
    return [(a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]

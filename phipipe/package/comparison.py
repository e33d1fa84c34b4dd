"""Two packages that should be one: what differs, by file, and why that may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.evaluate import papers
from phipipe.files import json_files
from phipipe.package import manifest as manifests
from phipipe.package import provenance
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.steps import Json
from phipipe.words import counted

SHOWN = 8  # places in a manifest, or packages of a toolchain, that a sentence names
# What follows from other files, and so says nothing beside them.
_DERIVED = ("digest", "files")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A package: its folder and its manifest, which has been checked."""

    folder: Path
    manifest: Manifest


def differences(old: Side, new: Side) -> list[Finding]:
    """Every file by which ``new`` is another package than ``old``; none where the two are the same,
    bit for bit. A signature is not compared, and a statement on ``old`` only if phipipe wrote it.
    """
    files = [{one.path: one for one in side.manifest.files} for side in (old, new)]
    found = [*_listed(*({path: f.sha256 for path, f in of.items()} for of in files))]
    first, second = (_json(side, papers.MANIFEST) for side in (old, new))
    if first != second:
        found_places = json_files.differences(first, second)
        places = [where for where in found_places if where.split(".")[0] not in _DERIVED]
        if places or not found:
            found.append(Finding(papers.MANIFEST, f"differs in {_some(places or ['files'])}"))
    if not found and not _same_statement(old, new):
        found.append(Finding(papers.PROVENANCE, "has other content"))
    if any(one.path not in (papers.SUMS, papers.MANIFEST) for one in found):
        found = [one for one in found if one.path != papers.SUMS]  # it follows them
    return sorted(found)


def _listed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Finding]:
    """Of two tables, path → digest."""
    for path in sorted({*old, *new}):
        if path not in new:
            yield Finding(path, "is missing in the rebuilt package")
        elif path not in old:
            yield Finding(path, "is in the rebuilt package alone")
        elif old[path] != new[path]:
            yield Finding(path, "has other content")


def _same_statement(old: Side, new: Side) -> bool:
    """Whether both say the same of how they were made; where one says nothing, or a builder of
    another kind spoke, there is nothing to compare."""
    paths = [side.folder / papers.PROVENANCE for side in (old, new)]
    if not all(path.is_file() for path in paths):
        return True
    first, second = (_json(side, papers.PROVENANCE) for side in (old, new))
    return first == second or provenance.is_of_another_builder(first)


def _json(side: Side, name: str) -> dict[str, Json]:
    return json_files.read_object(side.folder / name, manifests.MAX_BYTES)


def _some(places: list[str]) -> str:
    shown = ", ".join(f"`{json_files.shown(place)}`" for place in places[:SHOWN])
    more = len(places) - SHOWN
    return f"{shown} and {counted(more, 'more place')}" if more > 0 else shown


def reasons(old: Manifest, *, phipipe: str, tools: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Why a rebuild by ``phipipe`` can hardly give the same: another version of phipipe, or of what
    the toolchains have. ``tools``: of each of the package's steps that is known here, what its
    toolchain has."""
    found = []
    if old.phipipe != phipipe:
        found.append(f"phipipe {old.phipipe} made the package, and this is {phipipe}")
    told = dict.fromkeys(
        f"toolchain `{old.steps[name].toolchain or name}` has other versions than then: {changed}"
        for name, packages in tools.items()
        if name in old.steps and (changed := _changed(old.steps[name].tools, packages))
    )
    return [*found, *told]


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Packages whose versions differ, a few of them, in words."""
    lines = [
        f"{json_files.shown(name)} {json_files.shown(old.get(name, 'missing'))} → "
        f"{new.get(name, 'missing')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    more = len(lines) - SHOWN
    return ", ".join(lines[:SHOWN]) + (f" and {more} more" if more > 0 else "")

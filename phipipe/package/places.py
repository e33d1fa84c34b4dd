"""Where something may be written beside packages: never into one, which is a closed world."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from phipipe.errors import SourceError, StoreError
from phipipe.files import json_files, user_paths
from phipipe.package import manifest

BOARD = "-board"  # added to the recipe's name where that is a package's


def refuse_inside(folder: Path) -> None:
    """Refuse to write into ``folder`` if it is a package, or lies in one.

    Raises:
        StoreError: whatever is written there makes the package another one than was packaged.
    """
    whole = user_paths.resolved(folder)
    for place in (whole, *whole.parents):
        if _is_package(place):
            raise StoreError(
                f"`{folder}` is{'' if place == whole else ' inside'} a package, into which "
                f"nothing else is written",
                hint="choose another --out",
            )


def of_board(out: Path, name: str, builds: Iterable[str]) -> Path:
    """The folder in ``out`` for the board of the recipe ``name``: named like it, unless that is a
    package, or one of its ``builds`` becomes one there."""
    taken, folder = set(builds), out / name
    while folder.name in taken or (folder / manifest.NAME).exists():
        folder = folder.with_name(f"{folder.name}{BOARD}")
    return folder


def _is_package(folder: Path) -> bool:
    """Whether the folder's manifest is one of phipipe's, also of another version."""
    try:
        content = json_files.read_object(folder / manifest.NAME, manifest.MAX_BYTES)
    except SourceError:
        return False
    return content.get("type") == manifest.TYPE

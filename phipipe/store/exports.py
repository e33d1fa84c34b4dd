"""Packages outside the store: a folder replaced as a whole, and nothing that is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.store import claims, keys
from phipipe.store import files as store_files


def is_copy(target: Path, expected: Mapping[str, tuple[int, int]]) -> bool:
    """Whether ``target`` holds just these files, by name, size and time."""
    try:
        files = {
            path: (status.st_size, status.st_mtime_ns) for path, status in keys.walk(target).items()
        }
    except (OSError, StoreError):
        return False
    return files == expected


def check_replaceable(target: Path) -> None:
    """Refuse to replace what phipipe did not write."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StoreError(
            f"`{target}` is in the way: it is no folder", hint="remove it, or choose another --out"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        board = (target / "board.json").is_file()
        held = "a board and no package" if board else "files that phipipe did not write"
        raise StoreError(
            f"`{target}` holds {held}, where the package has to go",
            hint=f"{'move it away' if board else 'empty it'}, or choose another --out",
        )


def export(source: Path, times: Mapping[str, int], target: Path) -> None:
    """Replace ``target`` by a copy of ``source``: built beside it, flushed, renamed."""

    def copied(new: Path) -> None:
        for path, mtime_ns in times.items():
            copy_to(source / path, new / path)
            os.utime(new / path, ns=(mtime_ns, mtime_ns))

    replace(target, copied)


def copy_to(source: Path, target: Path) -> None:
    """Copy a file, with the folders that it needs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    store_files.copy(source, target)


def replace(target: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder ``target`` by one that ``fill`` fills: built beside it, flushed,
    renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with claims.claim(target.parent, f".{target.name}.") as aside:
        new = aside / "new"
        new.mkdir()
        fill(new)
        store_files.flush_tree(new, keys.walk(new))
        _swap(new, target, aside / "old")


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put ``new`` where ``target`` is and ``target`` to ``old``; if that fails, all is as
    before."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    store_files.flush_folder(target.parent)

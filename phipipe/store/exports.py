"""Packages outside the store: a folder replaced as a whole, and nothing that is not ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.store import claims, keys
from phipipe.store import files as store_files


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What a package may have that the store does not keep.

    Attributes:
        beside: names of files that may lie in it besides.
        finish: completes a new one before anybody sees it.
    """

    beside: Collection[str] = ()
    finish: Callable[[Path], None] = lambda folder: None


PLAIN = Extra()


def is_copy(
    target: Path, expected: Mapping[str, tuple[int, int]], beside: Collection[str] = ()
) -> bool:
    """Whether ``target`` holds just these files, by name, size and time; files called ``beside``
    may be there as well."""
    try:
        files = {
            path: (status.st_size, status.st_mtime_ns) for path, status in keys.walk(target).items()
        }
    except (OSError, StoreError):
        return False
    for path in beside:
        if path not in expected:
            files.pop(path, None)
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


def export(
    source: Path,
    times: Mapping[str, int],
    target: Path,
    extra: Extra = PLAIN,
    *,
    give: bool = False,
) -> None:
    """Replace ``target`` by a copy of ``source``: built beside it, completed as ``extra``
    says, flushed, renamed. ``give``: by the files themselves, which nobody else has, where both are
    on one file system."""

    def copied(new: Path) -> None:
        for path, mtime_ns in times.items():
            if give:
                give_to(source / path, new / path)
            else:
                copy_to(source / path, new / path)
            os.utime(new / path, ns=(mtime_ns, mtime_ns))
        extra.finish(new)

    replace(target, copied)


def copy_to(source: Path, target: Path) -> None:
    """Copy a file, with the folders that it needs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    store_files.copy(source, target)


def give_to(source: Path, target: Path) -> None:
    """Make ``target``, which its owner may write to, the file ``source`` itself; a copy where that
    cannot be. Until ``source`` is removed, nothing is lost."""
    target.parent.mkdir(parents=True, exist_ok=True)
    store_files.share(source, target)
    target.chmod(stat.S_IMODE(target.stat().st_mode) | stat.S_IWUSR)


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

"""Copies of a checkpoint that a converter may read: its config patched, the source untouched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from phipipe.steps import Json


def staged(source: Path, patch: Mapping[str, Json], scratch: Path) -> Path:
    """The checkpoint ``source`` in the new folder ``scratch``, its ``config.json`` patched.

    ``patch`` replaces top-level keys. ``source`` itself is never changed: weights are hard links to
    its files, which no converter opens for writing, where the file system has them; everything else
    is copied. Nothing is a symbolic link, but for weights that are one in ``source`` already: files
    of the user's, which lie anywhere, as in the hub's own cache.
    """
    scratch.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            take(path, scratch / path.name)
    config = scratch / "config.json"
    patched = json.loads(config.read_text("utf-8")) | dict(patch)
    config.write_text(json.dumps(patched, indent=2) + "\n", "utf-8")
    return scratch


def take(path: Path, target: Path) -> None:
    """The file ``path`` as ``target``: weights under another name, all else by copy."""
    if path.suffix == ".safetensors":
        _link(path, target)
    else:
        shutil.copyfile(path, target)


def copy_beside(
    source: Path,
    out: Path,
    names: Iterable[str] | None = None,
    *,
    leave: Callable[[str], bool] = lambda name: False,
) -> None:
    """Copy the files ``names`` of ``source`` (default: all) to ``out`` as they are, but for those
    to ``leave``."""
    for name in sorted(path.name for path in source.iterdir()) if names is None else names:
        if (source / name).is_file() and not leave(name):
            shutil.copyfile(source / name, out / name)


def _link(source: Path, target: Path) -> None:
    """Another name for ``source``, a link to the same file if it is one; a copy where the system
    refuses, and on Windows.

    There, the name of a read-only file is removed by making the file writable, which would be the
    store's own.
    """
    if source.is_symlink():
        target.symlink_to(source.resolve())
        return
    if os.name != "nt":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)

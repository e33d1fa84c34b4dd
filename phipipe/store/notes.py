"""What was once found out about a folder's files outside the store, remembered by their sizes and
times.

A memory and no more: what is not just as it was written is forgotten, and the files are looked at
anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.files import user_paths
from phipipe.steps import Json
from phipipe.store import files, keys
from phipipe.store.digests import FOLDER, RACY_NS


def is_known(folder: Path, names: Iterable[str], cache: Path, subject: str) -> bool:
    """Whether ``remember`` was called for these files with this ``subject``, and none of them
    changed since."""
    try:
        found = keys.open_sealed(files.read_plain(_place(folder, cache, subject)))
        stamps = _stamps(folder, names)
    except (OSError, StoreError):
        return False
    looked = found.get("looked_ns")
    if found.get("files") != stamps or type(looked) is not int:
        return False
    # a file written this shortly before may change again within its timestamp's resolution
    return all(looked - int(stamp["mtime_ns"]) > RACY_NS for stamp in stamps.values())


def remember(folder: Path, names: Iterable[str], cache: Path, subject: str) -> None:
    """Note that the files ``names`` of ``folder``, as they are now, passed the look at
    ``subject``. What cannot be written is looked at again the next time."""
    path = _place(folder, cache, subject)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError, StoreError):
        stamps = _stamps(folder, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(keys.seal_record({"files": stamps, "looked_ns": time.time_ns()}))
        aside.replace(path)
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)


def _place(folder: Path, cache: Path, subject: str) -> Path:
    name = hashlib.sha256(os.fsencode(user_paths.resolved(folder))).hexdigest()[:32]
    return cache / FOLDER / f"{name}.{subject}"


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Json]]:
    statuses = {name: (folder / name).stat() for name in names}
    return {
        name: {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        for name, status in statuses.items()
    }

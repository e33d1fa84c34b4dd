"""Work of steps that can go on where they were cut short: what a killed run leaves for the next.

It lies in ``<cache>/unfinished/KEY``. Whoever works on it holds the lock of its key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.store import files, free_space, refusals

FOLDER, OUT = "unfinished", "out"


@contextlib.contextmanager
def working(root: Path, key: str) -> Iterator[Path]:
    """A folder for the step ``key``, whose lock is held, with what there is of its output in
    ``out``. It stays where this is left by an error."""
    folder = root / FOLDER / key
    with refusals.guard(root):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name != OUT:
                files.remove(path)
    with refusals.guard(root, None, free_space.FULL):
        yield folder
    files.remove(folder)


def remove_idle(root: Path) -> int:
    """Remove what nobody works on; the bytes that it took."""
    freed = 0
    for folder in sorted((root / FOLDER).glob("*")):
        lock = FileLock(root / "locks" / f"{folder.name}.lock")
        with contextlib.suppress(Timeout, OSError), lock.acquire(blocking=False):
            size = files.size_of(folder)
            files.remove(folder)
            freed += size
    return freed

"""Damage put aside: ``quarantine/``, until the next collection."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from phipipe.store import claims, files, refusals


class Quarantine:
    """The quarantine of the store in ``root``; ``notify`` is told of damage."""

    def __init__(self, root: Path, notify: Callable[[str], None]) -> None:
        self._root, self._notify = root, notify
        self.folder = root / "quarantine"

    def place(self, name: str) -> Path:
        """Where something called ``name`` may be moved to."""
        return self.folder / f"{name}-{uuid.uuid4().hex[:8]}"

    def put(self, path: Path, seen: object, message: str | None = None) -> None:
        """Move here what was ``seen`` (its ``identity``) to be damaged, and nothing that has
        replaced it since."""
        with refusals.guard(self._root), claims.gate(self._root):
            if seen is not None and files.identity(path) == seen:
                path.rename(self.place(path.name))
        if message:
            self._notify(message)

    def has(self, name: str) -> bool:
        """Whether something called ``name`` was put here."""
        return any(self.folder.glob(f"{name}-*"))

    def drop(self, record: Path, seen: object) -> None:
        """Remove a record whose tree is gone, and nothing that has replaced it since."""
        with refusals.guard(self._root), claims.gate(self._root):
            if files.identity(record) == seen:
                record.unlink(missing_ok=True)

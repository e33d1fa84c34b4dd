"""What results consist of: ``objects/<digest>/``, trees that are named by their content."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from phipipe.errors import StoreError
from phipipe.store import keys, refusals
from phipipe.store.records import Stored


class Trees:
    """The trees of the store in ``root``, and which of them are known to be right."""

    def __init__(self, root: Path) -> None:
        self._root, self.folder = root, root / "objects"
        self.sound: set[str] = set()  # digests whose content was hashed by us
        self._hashing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, digest: str) -> Path:
        """Where the tree ``digest`` is, or will be."""
        return self.folder / digest

    def hashing(self, digest: str) -> threading.Lock:
        """Held by the thread that hashes the tree ``digest``: others wait for what it finds."""
        return self._hashing[digest]

    def is_intact(self, path: Path, digest: str) -> bool:
        """Hash all of ``path``. That we cannot look (too many open files, say) is an error, not
        damage."""
        try:
            with refusals.guard(self._root):
                intact = keys.tree_digest(keys.hash_tree(path)) == digest
        except StoreError as error:
            if refusals.is_damage(error):
                return False
            raise
        if intact:
            self.sound.add(digest)
        return intact

    def as_it_is(self, stored: Stored) -> Stored | None:
        """``stored`` if sizes and times are as recorded; with today's times if only these differ;
        None if damaged."""
        try:
            with refusals.guard(self._root):
                files = keys.walk(stored.path)
        except StoreError as error:
            if refusals.is_damage(error):
                return None
            raise
        sizes = {path: status.st_size for path, status in files.items()}
        if sizes != {output["path"]: output["size"] for output in stored.outputs}:
            return None
        outputs = tuple({**o, "mtime_ns": files[o["path"]].st_mtime_ns} for o in stored.outputs)
        if outputs == stored.outputs:
            return stored
        intact = self.is_intact(stored.path, stored.digest)
        return replace(stored, outputs=outputs) if intact else None

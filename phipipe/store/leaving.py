"""Packages that leave a store: a folder of the user's becomes a copy of a result, or gets its very
files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.store import claims, exports, files, free_space, refusals
from phipipe.store.letting_go import Letting
from phipipe.store.records import Stored


@dataclass(frozen=True)
class Leaving:
    """Takes results out of the store in ``root``; ``consume`` is the store's own."""

    root: Path
    letting: Letting
    consume: Callable[[Stored], Path]

    def materialise(
        self, stored: Stored, target: Path, extra: exports.Extra, *, move: bool
    ) -> bool:
        """Make ``target`` a copy of ``stored``, with ``extra``; False if it is one already, by
        names, sizes and times. With ``move`` the store lets its own go, where nobody else needs it.

        Raises:
            StoreError: ``target`` is a file, or a folder that phipipe did not write (no
                ``manifest.json``).
            Damaged: see ``consume``.
        """
        times = {str(o["path"]): int(o["mtime_ns"]) for o in stored.outputs}
        sizes = {str(o["path"]): int(o["size"]) for o in stored.outputs}
        # a killed copy may have left the old one beside a good new one
        if self.letting.pins.locks_work and target.parent.is_dir():
            with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
                claims.sweep(target.parent, f".{target.name}.")
        if exports.is_copy(target, {p: (sizes[p], times[p]) for p in times}, extra.beside):
            return False
        exports.check_replaceable(target)
        source = self.consume(stored)
        with refusals.guard(target.parent, stored.size_bytes, remedy=free_space.KEEP_OUT):
            if not (move and self._move(stored, times, target, extra)):
                exports.export(source, times, target, extra)
        return True

    def _move(
        self, stored: Stored, times: Mapping[str, int], target: Path, extra: exports.Extra
    ) -> bool:
        """The same by giving the files themselves away; they come back if that fails."""
        with claims.claim(self.root / "tmp") as aside:
            tree = aside / "tree"
            if os.name == "nt" or not self.letting.take_out(stored, tree):
                return False
            try:
                exports.export(tree, times, target, extra, give=True)
            except BaseException:
                files.seal(tree, times)
                with claims.gate(self.root):
                    files.move_new(tree, self.letting.trees.path(stored.digest))
                raise
        return True

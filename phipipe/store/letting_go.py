"""Results whose files are let go while their records stay: what was only on the way to a package.

A record without its tree still tells the digest, so all that was made of it stays found, and a
cached run does not miss it. Whoever needs the files has them made again (``LetGo``), or copied back
from the package that took them over. Small reports of such a tree stay, in ``left/DIGEST``.

A tree goes only if all records that name it are of steps that nothing but steps reads, and no other
build has pinned it: both are looked at under the store's gate.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.steps import Json
from phipipe.store import claims, files, keys, refusals
from phipipe.store.pins import Pins
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import LEFT, Records, Stored
from phipipe.store.trees import Trees

KEEP = "keep"  # key of a record: ``Step.keep``, where it is not "result"
REPORT_BYTES = 2**20  # of a JSON file that stays
WITHIN = "within"  # key of a record: digest of the tree that took its files over


@dataclass(frozen=True)
class Letting:
    """Lets trees of the store in ``root`` go, and brings some back."""

    root: Path
    trees: Trees
    records: Records
    pins: Pins
    quarantine: Quarantine

    def let_go(self, stored: Stored, within: str | None = None) -> bool:
        """Remove the tree of ``stored``, unless somebody else needs it. ``within`` is the digest of
        a tree that has all of its files, too."""
        path = self.trees.path(stored.digest)
        with refusals.guard(self.root), claims.gate(self.root):
            records = self._records(stored.digest)
            is_free = records and all(record.get(KEEP) for record in records)
            if not path.is_dir() or not is_free or self.pins.others(stored.digest):
                return False
            left = self._leave(stored, path)
            for record in records:
                self._write(record, left, within)
            self.trees.sound.discard(stored.digest)
            trash = self.quarantine.place(stored.digest)
            path.rename(trash)
        with refusals.guard(self.root):
            files.remove(trash)
        return True

    def take_out(self, stored: Stored, folder: Path) -> bool:
        """Move the tree of ``stored``, which is whole, to ``folder``; False if somebody else needs
        it."""
        path = self.trees.path(stored.digest)
        with claims.gate(self.root):
            if self.pins.others(stored.digest) or not path.is_dir():
                return False
            left = self._leave(stored, path)
            for record in self._records(stored.digest):
                self._write(record, left, None)
            self.trees.sound.discard(stored.digest)
            path.rename(folder)
        return True

    def bring_back(self, stored: Stored, record: Mapping[str, Json]) -> bool:
        """Copy the files of ``stored`` from the tree that took them over, if it is still there and
        has them as they were."""
        within = record.get(WITHIN)
        if not isinstance(within, str) or not self.pins.pin(self.trees.path(within)):
            return False
        with refusals.guard(self.root), claims.claim(self.root / "tmp") as aside:
            tree = aside / "tree"
            with contextlib.suppress(FileNotFoundError):  # it is not what it was
                for output in stored.outputs:
                    target = tree / str(output["path"])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.copy(self.trees.path(within) / str(output["path"]), target)
                    os.utime(target, ns=(int(output["mtime_ns"]),) * 2)
            if not tree.is_dir() or not self.trees.is_intact(tree, stored.digest):
                return False
            files.seal(tree, [str(output["path"]) for output in stored.outputs])
            with claims.gate(self.root):
                self.pins.touch(stored.digest)
                files.move_new(tree, self.trees.path(stored.digest))
        return True

    def _records(self, digest: str) -> list[dict[str, Json]]:
        """All records of results with that ``digest``. The gate is held."""
        return [record for record in self.records.read_all() if record["digest"] == digest]

    def _leave(self, stored: Stored, path: Path) -> list[str]:
        """Keep the small reports of the tree at ``path``; their names."""
        names = [
            str(output["path"])
            for output in stored.outputs
            if str(output["path"]).endswith(".json") and int(output["size"]) <= REPORT_BYTES
        ]
        for name in names:
            target = self.root / LEFT / stored.digest / name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.remove(target)
            files.copy(path / name, target)
        return names

    def _write(self, record: dict[str, Json], left: list[str], within: str | None) -> None:
        """Say in ``record`` that its tree is gone. Its time of last use stays."""
        whole: dict[str, Json] = {**record, "left": left}
        if within is not None:
            whole[WITHIN] = within
        path = self.records.path(str(record["key"]))
        used = files.modified_ns(path)
        with claims.claim(self.root / "tmp") as aside:
            files.write(aside / "record", keys.seal_record(whole))
            os.utime(aside / "record", ns=(used, used))
            self.records.enter(aside / "record", str(record["key"]))


def is_left(stored: Stored) -> bool:
    """Whether what should be left of ``stored`` is there, and is as it was."""
    sums = {str(output["path"]): output["sha256"] for output in stored.outputs}
    with contextlib.suppress(OSError):
        return all(
            keys.hash_file(stored.path / name) == sums.get(name) for name in stored.left or ()
        )
    return False


def whole(stored: Stored, trees: Trees) -> Stored:
    """``stored`` as a result that has its tree, whatever its record says."""
    return replace(stored, place=None, left=None, path=trees.path(stored.digest))

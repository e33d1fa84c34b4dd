"""What makes room in a store: objects that nothing needs are removed, the longest unused first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.store import claims, downloads, refusals, unfinished
from phipipe.store import files as store_files
from phipipe.store.downloads import Download
from phipipe.store.pins import Pins
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import LEFT, Records
from phipipe.store.trees import Trees


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or in a dry run would; bytes of all files gone, and of objects
    left.

    ``removed`` has digests of objects, and paths of unfinished downloads.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int


@dataclass(frozen=True)
class Collector:
    """Removes what the store in ``root`` need not keep."""

    root: Path
    trees: Trees
    records: Records
    pins: Pins
    quarantine: Quarantine

    def collect(self, budget_bytes: int, dry_run: bool) -> GcReport:
        """Remove objects, those unused for longest first, until ``budget_bytes`` hold the rest.

        Unfinished downloads are objects here. What running builds need stays. Quarantine, steps
        that were cut short, and records and objects without their counterpart, go in any case.
        Records that should have no tree go with objects that were unused for as long. A dry run
        reports the same and removes nothing.
        """
        with refusals.guard(self.root), claims.gate(self.root), downloads.idle(self.root) as idle:
            partial, busy = idle
            sizes = {path.name: store_files.size_of(path) for path in self.trees.folder.iterdir()}
            sizes |= {name: download.size_bytes for name, download in partial.items()}
            records = self.records.last_uses()
            uses = [*records.values(), *((name, d.used_ns) for name, d in partial.items())]
            pinned = self.pins.digests() | (busy if self.pins.locks_work else set(partial))
            removed = choose(sizes, uses, pinned, budget_bytes)
            kept = sizes.keys() - set(removed)
            dropped = self._dropped(records, kept, {*removed}, pinned)
            trash = [*self.quarantine.folder.iterdir(), *self._left(records, dropped)]
            freed = sum(sizes[digest] for digest in removed)
            freed += sum(map(store_files.size_of, [*dropped, *trash]))
            if not dry_run:
                self._take_out(removed, dropped, partial, trash)
        if not dry_run:
            with refusals.guard(self.root):
                for path in trash:
                    store_files.remove(path)
                freed += unfinished.remove_idle(self.root)
        return GcReport(removed, freed, sum(sizes[digest] for digest in kept))

    def _dropped(
        self,
        records: Mapping[Path, tuple[str, int]],
        kept: Collection[str],
        removed: Collection[str],
        pinned: Collection[str],
    ) -> list[Path]:
        """Records that lose their tree, or have none."""
        apart = self.records.apart()
        newest = max((used for digest, used in records.values() if digest in removed), default=-1)
        return [
            path
            for path, (digest, used) in records.items()
            if digest not in kept
            and (
                path not in apart
                or (digest not in pinned and (used <= newest or (removed and not kept)))
            )
        ]

    def _left(
        self, records: Mapping[Path, tuple[str, int]], dropped: Collection[Path]
    ) -> list[Path]:
        """What trees left that were let go, and no record tells of any more."""
        needed = {digest for path, (digest, _) in records.items() if path not in set(dropped)}
        folders = (self.root / LEFT).glob("*")
        return [folder for folder in sorted(folders) if folder.name not in needed]

    def _take_out(
        self,
        removed: Collection[str],
        dropped: Iterable[Path],
        partial: Mapping[str, Download],
        trash: list[Path],
    ) -> None:
        """Remove records and downloads; trees are renamed, so that nobody sees half of one."""
        for path in dropped:  # first, so that no record ever points nowhere
            path.unlink(missing_ok=True)
        for name in partial.keys() & set(removed):
            downloads.remove(partial[name])
        for digest in set(removed) - partial.keys():
            trash.append(self.quarantine.place(digest))  # no new folder: the disk is full
            self.trees.path(digest).rename(trash[-1])


def choose(
    sizes: Mapping[str, int], uses: Iterable[tuple[str, int]], pinned: Collection[str], budget: int
) -> tuple[str, ...]:
    """Objects to remove: all that were never used, then the longest unused until the rest fits
    ``budget``.

    ``uses`` are digests and times, one for each record that names the object.
    """
    total, chosen = sum(sizes.values()), []
    used: dict[str, int] = {}
    for digest, moment in uses:
        used[digest] = max(moment, used.get(digest, 0))
    for digest in sorted(sizes, key=lambda d: (used.get(d, 0), d)):
        if digest not in pinned and (digest not in used or total > budget):
            chosen.append(digest)
            total -= sizes[digest]
    return tuple(chosen)

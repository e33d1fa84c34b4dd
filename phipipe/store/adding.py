"""What enters a store: a folder that a step filled, or the names of files that stay where they
are."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import StepFailed, StoreError
from phipipe.steps import Json
from phipipe.store import claims, files, keys, refusals
from phipipe.store.letting_go import Letting
from phipipe.store.pins import Pins
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import LEFT, Records, Stored, outputs_of
from phipipe.store.trees import Trees

ATTEMPTS = 3  # a tree may be found damaged this often while it is stored before we blame the disk
Found = Mapping[str, Mapping[str, Json]]  # as ``digests.entries`` gives


@dataclass(frozen=True)
class Adding:
    """Adds results to the store in ``root``: see ``Store.commit``."""

    root: Path
    trees: Trees
    records: Records
    pins: Pins
    quarantine: Quarantine
    letting: Letting

    def commit(
        self, key: str, folder: Path, record: Mapping[str, Json], taken: Stored | None = None
    ) -> Stored:
        """Take the files of ``folder`` (gone after this) as the result of ``key``.

        ``record`` says what made them; digest, outputs and a digest of the record itself are added.
        Files that are those of ``taken`` by another name are taken over: that result's own tree
        goes.

        Raises:
            StoreError: the disk is full or fails, or a step left something else than plain files.
            StepFailed: the step left no files.
        """
        stored = self._entered(key, folder, record, taken)
        if taken is not None and not self.letting.let_go(taken, stored.digest):
            with refusals.guard(self.root, stored.size_bytes):
                files.separate(stored.path)  # somebody else reads it
        return stored

    def _entered(
        self, key: str, folder: Path, record: Mapping[str, Json], taken: Stored | None
    ) -> Stored:
        with refusals.guard(self.root):
            needed = sum(status.st_size for status in keys.walk(folder).values())
        with (
            refusals.guard(self.root, needed),
            self.pins.any_session(),
            claims.claim(self.root / "tmp") as aside,
        ):
            files.separate(folder, None if taken is None else self.trees.path(taken.digest))
            times = files.times(folder)  # before hashing: what changes then, differs from it
            entries = keys.hash_tree(folder)
            if not entries:
                raise StepFailed("a step left no files")
            files.seal(folder, times)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            added = {"key": key, "digest": keys.tree_digest(entries), "created": created}
            whole = {
                "format": keys.FORMAT,
                **record,
                **added,
                "outputs": outputs_of(entries, times),
            }
            # all that takes room comes before the renames
            files.write(aside / "record", keys.seal_record(whole))
            actual = self.publish(folder, whole["digest"], times)
            if actual != times:
                whole["outputs"] = outputs_of(entries, actual)
                files.write(aside / "record", keys.seal_record(whole))
            self.records.enter(aside / "record", key)
        self.trees.sound.add(whole["digest"])
        return self.records.result(whole)

    def publish(self, folder: Path, digest: str, times: dict[str, int]) -> dict[str, int]:
        """Move ``folder`` to its place, unless the same content is there; the files' times as they
        then are."""
        path = self.trees.path(digest)
        for _ in range(ATTEMPTS):
            with claims.gate(self.root):
                self.pins.touch(digest)
                moved = files.move_new(folder, path)
            if moved:
                files.flush_folder(path.parent)
                return times
            seen = files.identity(path)
            # changed under our eyes: not intact either
            with contextlib.suppress(OSError, StoreError):
                times = files.times(path)
            if self.trees.is_intact(path, digest):
                files.remove(folder)
                return times
            message = f"the stored tree {digest[:12]} was damaged, replacing it"
            self.quarantine.put(path, seen, message)
        raise StoreError(
            f"the stored tree {digest[:12]} keeps being damaged", hint="check the disk"
        )

    def heal(self, record: Mapping[str, Json], current: Stored) -> None:
        """Remember the times that files have now, whose content was just found right; else they are
        hashed again."""
        with (
            contextlib.suppress(StoreError),
            refusals.guard(self.root),
            claims.claim(self.root / "tmp") as aside,
        ):
            whole = {**record, "outputs": list(current.outputs)}
            files.write(aside / "record", keys.seal_record(whole))
            self.records.enter(aside / "record", current.key)

    def lend(
        self,
        key: str,
        place: Path,
        found: Found,
        record: Mapping[str, Json],
        own: Path | None = None,
    ) -> Stored:
        """Enter the files ``found`` in the user's folder ``place`` as the result of ``key``,
        together with the small ones in the folder ``own`` (gone after this). Nothing else is
        copied.

        Raises:
            StoreError: the disk is full or fails.
        """
        entries = [keys.FileEntry(n, int(f["size"]), str(f["sha256"])) for n, f in found.items()]
        times = {name: int(f["mtime_ns"]) for name, f in found.items()}
        with refusals.guard(self.root), claims.claim(self.root / "tmp") as aside:
            if own is not None:
                times |= files.times(own)
                added = keys.hash_tree(own)
                entries += added
            whole: dict[str, Json] = {
                "format": keys.FORMAT,
                **record,
                "key": key,
                "digest": keys.tree_digest(entries),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "outputs": outputs_of(sorted(entries), times),
                "place": str(place),
            }
            if own is not None:
                whole["left"] = [entry.path for entry in added]
                files.seal(own, whole["left"])
                self._leave(own, self.root / LEFT / whole["digest"])
            files.write(aside / "record", keys.seal_record(whole))
            self.records.enter(aside / "record", key)
        return self.records.result(whole)

    def _leave(self, own: Path, target: Path) -> None:
        with claims.gate(self.root):
            files.remove(target)  # of the same content, if there is one
            target.parent.mkdir(exist_ok=True)
            own.rename(target)

"""Results by content: ``objects/<digest>/`` are trees of read-only files, ``actions/<key>.json``
say what made them.

What is visible is complete: a tree is built aside, flushed, renamed into place, and only then is
its record written. So whoever is killed leaves nothing visible but whole trees. Locks save work;
that what is read is right never depends on them, but on digests: a record carries its own, a tree
is named by its own.

The gate (one lock for the store) makes "pin, and see whether it is there" one act with respect to
collections. It is held for renames and small writes, never while content is read.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.errors import StepFailed, StoreError
from phipipe.steps import Json
from phipipe.store import claims, exports, files, free_space, keys, refusals, verification
from phipipe.store import folder as store_folder
from phipipe.store import unfinished as unfinished_steps
from phipipe.store.collection import Collector, GcReport
from phipipe.store.exports import PLAIN
from phipipe.store.pins import Pins
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import Damaged, NoRecord, Records, Stored, Usage, outputs_of
from phipipe.store.trees import Trees

ATTEMPTS = 3  # a tree may be found damaged this often while it is stored before we blame the disk


class Store:
    """The store in ``root``, made if it is not there. ``notify`` is told of damage and of waiting.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, notify: Callable[[str], None] = lambda line: None) -> None:
        self.root, self._notify = root, notify
        with refusals.guard(root):
            store_folder.prepare(root)
            locks_work = claims.locks_work(root / "locks" / "collect.lock")
            self._records, self._trees = Records(root), Trees(root)
            self._pins, self._quarantine = Pins(root, locks_work), Quarantine(root, notify)
            if locks_work:
                claims.sweep(root / "tmp")
            self._pins.sweep()

    # What is there

    def record(self, key: str) -> dict[str, Json]:
        """The record of ``key``, intact.

        Raises:
            StoreError: there is none.
            Damaged: it was changed since it was written.
        """
        return self._records.read(key)

    def records(self, newest: int | None = None) -> Iterator[dict[str, Json]]:
        """All intact records by key; or so many, the ``newest`` first."""
        return self._records.read_all(newest)

    def usage(self) -> list[Usage]:
        """One row per record."""
        return self._records.usage()

    def peek(self, key: str) -> Stored | None:
        """What ``lookup`` would find, changing nothing."""
        try:
            return self._trees.as_it_is(self._records.result(self.record(key)))
        except (NoRecord, Damaged):
            return None

    def lookup(self, key: str) -> Stored | None:
        """The result stored under ``key``: pinned, its files' sizes and times as recorded, else
        hashed again.

        Damage is put aside, said, and None returned.
        """
        path = self._records.path(key)
        seen = files.identity(path)
        try:
            record = self.record(key)
        except NoRecord:
            return None
        except Damaged as damage:
            self._quarantine.put(path, seen, f"{damage.message}, building its result again")
            return None
        stored = self._records.result(record)
        if not self._pins.pin(stored.path):
            self._quarantine.drop(path, seen)
            self._notify(f"the result {key[:12]} is gone from the cache, building it again")
            return None
        tree = files.identity(stored.path)
        current = self._trees.as_it_is(stored)
        if current is None:
            message = f"the result {key[:12]} is damaged in the cache, building it again"
            self._put_aside(stored, tree, message)
            return None
        if current is not stored:
            self._heal(record, current)
        self._records.mark_used(key)
        return current

    def consume(self, stored: Stored) -> Path:
        """The folder of ``stored`` after hashing all of it, once per digest and instance.

        Raises:
            Damaged: the content is not what was stored; it has been put aside.
        """
        with self._trees.hashing(stored.digest):
            if stored.digest not in self._trees.sound:
                self._make_sure(stored)
        return stored.path

    def _make_sure(self, stored: Stored) -> None:
        seen = files.identity(stored.path)
        if not self._trees.is_intact(stored.path, stored.digest):
            message = f"the result {stored.key[:12]} is not what was stored"
            self._put_aside(stored, seen, message)
            raise Damaged(message, stored.digest)

    # Adding

    def commit(self, key: str, folder: Path, record: Mapping[str, Json]) -> Stored:
        """Take the files of ``folder`` (gone after this) as the result of ``key``.

        ``record`` says what made them; digest, outputs and a digest of the record itself are added.

        Raises:
            StoreError: the disk is full or fails, or a step left something else than plain files.
            StepFailed: the step left no files.
        """
        with refusals.guard(self.root):
            needed = sum(status.st_size for status in keys.walk(folder).values())
        with (
            refusals.guard(self.root, needed),
            self._pins.any_session(),
            claims.claim(self.root / "tmp") as aside,
        ):
            files.separate(folder)
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
            actual = self._publish(folder, whole["digest"], times)
            if actual != times:
                whole["outputs"] = outputs_of(entries, actual)
                files.write(aside / "record", keys.seal_record(whole))
            self._records.enter(aside / "record", key)
        self._trees.sound.add(whole["digest"])
        return self._records.result(whole)

    def _publish(self, folder: Path, digest: str, times: dict[str, int]) -> dict[str, int]:
        """Move ``folder`` to its place, unless the same content is there; the files' times as they
        then are."""
        path = self._trees.path(digest)
        for _ in range(ATTEMPTS):
            with claims.gate(self.root):
                self._pins.touch(digest)
                moved = files.move_new(folder, path)
            if moved:
                files.flush_folder(path.parent)
                return times
            seen = files.identity(path)
            # changed under our eyes: not intact either
            with contextlib.suppress(OSError, StoreError):
                times = files.times(path)
            if self._trees.is_intact(path, digest):
                files.remove(folder)
                return times
            message = f"the stored tree {digest[:12]} was damaged, replacing it"
            self._quarantine.put(path, seen, message)
        raise StoreError(
            f"the stored tree {digest[:12]} keeps being damaged", hint="check the disk"
        )

    def _heal(self, record: Mapping[str, Json], current: Stored) -> None:
        """Remember the times that files have now, whose content was just found right; else they are
        hashed again."""
        with (
            contextlib.suppress(StoreError),
            refusals.guard(self.root),
            claims.claim(self.root / "tmp") as aside,
        ):
            whole = {**record, "outputs": list(current.outputs)}
            files.write(aside / "record", keys.seal_record(whole))
            self._records.enter(aside / "record", current.key)

    # Working space, locks, sessions

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of ``key``: others wait, look again, and find the result."""
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        with refusals.guard(self.root):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self._notify(f"waiting for another phipipe, which builds {key[:12]}")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def scratch(self, needed_bytes: int | None = None) -> Iterator[Path]:
        """An empty folder on the store's file system, removed at the end whatever happens.

        ``needed_bytes`` is what the caller expects to write, for the message if the disk becomes
        full.
        """
        with contextlib.ExitStack() as stack:
            with refusals.guard(self.root, needed_bytes):
                folder = stack.enter_context(claims.claim(self.root / "tmp"))
            # anything but a full disk is the caller's own affair
            with refusals.guard(self.root, needed_bytes, free_space.FULL):
                yield folder

    def unfinished(self, key: str) -> contextlib.AbstractContextManager[Path]:
        """Like ``scratch``, with what a step that was cut short left in ``out``."""
        return unfinished_steps.working(self.root, key)

    def session(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, everything looked up or committed is safe from collection; so it is
        until we die."""
        return self._pins.session()

    # Damage

    def _put_aside(self, stored: Stored, seen: object, message: str) -> None:
        """Put the tree of ``stored``, as it was ``seen``, and its record into quarantine."""
        self._trees.sound.discard(stored.digest)
        path = self._records.path(stored.key)
        self._quarantine.put(path, files.identity(path))  # kept as well: ``was_damaged``
        self._quarantine.put(stored.path, seen, message)

    def was_damaged(self, key: str) -> bool:
        """Of a result that is not to be had: whether there was one, which is damaged or was put
        aside."""
        try:
            return self._records.result(self.record(key)).path.is_dir()
        except NoRecord:
            return self._quarantine.has(self._records.path(key).name)
        except Damaged:
            return True

    def verify(self) -> list[str]:
        """Hash every tree and every record; put damage aside. One line per finding."""
        return verification.verify(self._trees, self._records, self._quarantine)

    # Leaving the store

    def gc(self, budget_bytes: int, dry_run: bool = False) -> GcReport:
        """Remove objects, those unused for longest first, until ``budget_bytes`` hold the rest: see
        ``Collector.collect``."""
        collector = Collector(self.root, self._trees, self._records, self._pins, self._quarantine)
        return collector.collect(budget_bytes, dry_run)

    def materialise(self, stored: Stored, target: Path, extra: exports.Extra = PLAIN) -> bool:
        """Make ``target`` a copy of ``stored``, with ``extra``; False if it is one already, by
        names, sizes and times.

        Raises:
            StoreError: ``target`` is a file, or a folder that phipipe did not write (no
                ``manifest.json``).
            Damaged: see ``consume``.
        """
        times = {str(o["path"]): int(o["mtime_ns"]) for o in stored.outputs}
        sizes = {str(o["path"]): int(o["size"]) for o in stored.outputs}
        # a killed copy may have left the old one beside a good new one
        if self._pins.locks_work and target.parent.is_dir():
            with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
                claims.sweep(target.parent, f".{target.name}.")
        if exports.is_copy(target, {p: (sizes[p], times[p]) for p in times}, extra.beside):
            return False
        exports.check_replaceable(target)
        source = self.consume(stored)
        with refusals.guard(target.parent, stored.size_bytes, remedy=free_space.KEEP_OUT):
            exports.export(source, times, target, extra)
        return True

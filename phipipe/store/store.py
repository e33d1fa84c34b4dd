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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from phipipe.steps import Json
from phipipe.store import (
    adding,
    claims,
    exports,
    files,
    free_space,
    lent,
    letting_go,
    refusals,
    verification,
)
from phipipe.store import folder as store_folder
from phipipe.store import unfinished as unfinished_steps
from phipipe.store.adding import Adding
from phipipe.store.collection import Collector, GcReport
from phipipe.store.exports import PLAIN
from phipipe.store.leaving import Leaving
from phipipe.store.lent import Lent
from phipipe.store.letting_go import Letting
from phipipe.store.pins import Pins
from phipipe.store.quarantine import Quarantine
from phipipe.store.records import Damaged, LetGo, NoRecord, Records, Stored, Usage
from phipipe.store.trees import Trees


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
        self._lent = Lent(root)
        self._letting = Letting(root, self._trees, self._records, self._pins, self._quarantine)
        self._adding = Adding(
            root, self._trees, self._records, self._pins, self._quarantine, self._letting
        )
        self._wanted: set[str] = set()  # digests of trees that were let go, and are needed again

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
            stored = self._records.result(self.record(key))
        except (NoRecord, Damaged):
            return None
        if not stored.is_whole and not self._trees.path(stored.digest).is_dir():
            return stored if stored.place or letting_go.is_left(stored) else None
        return self._trees.as_it_is(letting_go.whole(stored, self._trees))

    def lookup(self, key: str) -> Stored | None:
        """The result stored under ``key``: pinned, its files' sizes and times as recorded, else
        hashed again.

        Damage is put aside, said, and None returned. A result may have ``place`` and no tree; or
        its tree was let go, and nobody here has needed it since.
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
        stored = letting_go.whole(self._records.result(record), self._trees)
        if not self._pins.pin(stored.path):
            if apart := self._apart(key):
                return apart if apart.digest not in self._wanted else None
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
            self._adding.heal(record, current)
        self._records.mark_used(key)
        return current

    def _apart(self, key: str) -> Stored | None:
        """The result ``key`` if it has no tree, and should have none."""
        with contextlib.suppress(NoRecord, Damaged):
            stored = self._records.result(self.record(key))  # it may have been let go just now
            if not stored.is_whole and (stored.place or letting_go.is_left(stored)):
                self._records.mark_used(key)
                return stored
        return None

    def consume(self, stored: Stored) -> Path:
        """The folder of ``stored`` after hashing all of it, once per digest and instance; of files
        that lie outside, a view.

        Raises:
            Damaged: the content is not what was stored; it has been put aside. LetGo: its tree was
                let go.
            SourceError: files that lie outside are not what they were.
        """
        if stored.place is not None:
            return self._lent.view(stored)
        with self._trees.hashing(stored.digest):
            if stored.left is not None:
                stored = self._brought_back(stored)
            if stored.digest not in self._trees.sound:
                self._make_sure(stored)
        return stored.path

    def _brought_back(self, stored: Stored) -> Stored:
        if not self._trees.path(stored.digest).is_dir() and not self._letting.bring_back(
            stored, self.record(stored.key)
        ):
            self._wanted.add(stored.digest)
            raise LetGo([stored.digest])
        return letting_go.whole(stored, self._trees)

    def _make_sure(self, stored: Stored) -> None:
        with refusals.guard(self.root, stored.size_bytes):
            files.part(stored.path)
        seen = files.identity(stored.path)
        if not self._trees.is_intact(stored.path, stored.digest):
            message = f"the result {stored.key[:12]} is not what was stored"
            self._put_aside(stored, seen, message)
            raise Damaged(message, stored.digest)

    # Adding

    def commit(
        self, key: str, folder: Path, record: Mapping[str, Json], taken: Stored | None = None
    ) -> Stored:
        """Take the files of ``folder`` (gone after this) as the result of ``key``: see
        ``Adding.commit``."""
        return self._adding.commit(key, folder, record, taken)

    def lend(
        self,
        key: str,
        place: Path,
        found: adding.Found,
        record: Mapping[str, Json],
        own: Path | None = None,
    ) -> Stored:
        """Enter files of the user's folder ``place`` as the result of ``key``: see
        ``Adding.lend``."""
        return self._adding.lend(key, place, found, record, own)

    def lent(self, digest: str) -> Path | None:
        """Where a user has, or had, the tree ``digest``: a folder, or its one GGUF; None where
        nobody knows."""
        for record in self.records():
            if record["digest"] == digest and "place" in record and "left" not in record:
                names = [str(output["path"]) for output in record["outputs"]]
                return lent.whereabouts(Path(str(record["place"])), names)
        return None

    def let_go(self, stored: Stored) -> bool:
        """Remove the tree of ``stored``, and keep its record; not if another build needs it, or
        somebody may want to see it: see ``letting_go``."""
        with contextlib.suppress(NoRecord, Damaged):
            is_free = stored.is_whole and letting_go.KEEP in self.record(stored.key)
            return is_free and self._letting.let_go(stored)
        return False

    def is_wanted(self, key: str) -> bool:
        """Whether the tree of ``key`` was let go, and is needed again."""
        with contextlib.suppress(NoRecord, Damaged):
            return str(self.record(key)["digest"]) in self._wanted
        return False

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

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """While this lasts, everything looked up or committed is safe from collection; so it is
        until we die."""
        with self._pins.session(), self._lent.session():
            yield

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

    def materialise(
        self, stored: Stored, target: Path, extra: exports.Extra = PLAIN, *, move: bool = False
    ) -> bool:
        """Make ``target`` a copy of ``stored``, with ``extra``: see ``Leaving.materialise``."""
        leaving = Leaving(self.root, self._letting, self.consume)
        return leaving.materialise(stored, target, extra, move=move)

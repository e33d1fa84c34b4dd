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
import errno
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from phipipe.errors import StepFailed, StoreError
from phipipe.store import downloads, files, free_space, keys
from phipipe.store.files import GcReport as GcReport
from phipipe.store.files import Usage as Usage
from phipipe.store.files import copy as copy

FOLDERS = ("objects", "actions", "locks", "tmp", "quarantine", "pins")
ATTEMPTS = 3  # a tree may be found damaged this often while it is stored before we blame the disk


class Damaged(StoreError):
    """A stored tree or record is not what was stored. It has been put aside; making it again is all
    that is needed."""

    DETAILS = ("digest",)

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(message, hint="run the same command again: it is built anew")
        self.digest = digest


@dataclass(frozen=True)
class Stored:
    """A result: where it lies, and size and time of each file as they were when it was stored."""

    key: str
    digest: str
    path: Path
    outputs: tuple[Mapping[str, Any], ...]  # path, size, sha256, mtime_ns

    @property
    def size_bytes(self) -> int:
        return sum(int(output["size"]) for output in self.outputs)


class Store:
    """The store in ``root``, made if it is not there. ``notify`` is told of damage and of waiting.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, notify: Callable[[str], None] = lambda line: None) -> None:
        self.root, self._notify = root, notify
        self._sessions: list[Path] = []
        self._sound: set[str] = set()  # digests whose content this instance has hashed
        self._hashing: defaultdict[str, threading.Lock] = defaultdict(
            threading.Lock
        )  # one thread hashes, others wait
        with files.guard(root):
            for name in FOLDERS:
                (root / name).mkdir(parents=True, exist_ok=True)
                if not os.access(root / name, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root / name))
            files.label(root)
            self._locks_work = files.locks_work(root / "locks" / "collect.lock")
            self._sweep("tmp", "pins")

    def _sweep(self, *names: str) -> None:
        if self._locks_work:
            for name in names:
                files.sweep(self.root / name)

    # What is there

    def record(self, key: str) -> dict[str, Any]:
        """The record of ``key``, intact.

        Raises:
            StoreError: there is none.
            Damaged: it was changed since it was written.
        """
        try:
            raw = files.read_plain(self._action(key))
        except FileNotFoundError:
            raise _Missing(f"nothing is stored under {key[:12]}") from None
        except OSError as error:
            if error.errno == errno.EIO:
                raise Damaged(f"the record {key[:12]} cannot be read", "") from error
            raise files.typed(error, self.root) from error
        try:
            return keys.open_record(raw, key)
        except StoreError:
            raise Damaged(f"the record {key[:12]} is damaged", "") from None

    def records(self, newest: int | None = None) -> Iterator[dict[str, Any]]:
        """All intact records by key; or so many, the ``newest`` first."""
        paths = sorted((self.root / "actions").glob("*.json"))
        if newest is not None:
            paths = sorted(paths, key=files.modified_ns, reverse=True)[:newest]
        for path in paths:
            with contextlib.suppress(_Missing, Damaged):
                yield self.record(path.stem)

    def peek(self, key: str) -> Stored | None:
        """What ``lookup`` would find, changing nothing."""
        try:
            return self._as_it_is(self._described(self.record(key)))
        except (_Missing, Damaged):
            return None

    def lookup(self, key: str) -> Stored | None:
        """The result stored under ``key``: pinned, its files' sizes and times as recorded, else
        hashed again.

        Damage is put aside, said, and None returned.
        """
        path = self._action(key)
        seen = files.identity(path)
        try:
            record = self.record(key)
        except _Missing:
            return None
        except Damaged as damage:
            self._put_aside(path, seen, f"{damage.message}, building its result again")
            return None
        stored = self._described(record)
        if not self._pin(stored.digest):
            self._drop(path, seen)
            self._notify(f"the result {key[:12]} is gone from the cache, building it again")
            return None
        tree = files.identity(stored.path)
        current = self._as_it_is(stored)
        if current is None:
            self._quarantine(
                stored, tree, f"the result {key[:12]} is damaged in the cache, building it again"
            )
            return None
        if current is not stored:
            self._heal(record, current)
        with contextlib.suppress(
            OSError
        ):  # removed meanwhile, or another user's: only the order of gc depends on it
            os.utime(path, ns=(time.time_ns(),) * 2)
        return current

    def consume(self, stored: Stored) -> Path:
        """The folder of ``stored`` after hashing all of it, once per digest and instance.

        Raises:
            Damaged: the content is not what was stored; it has been put aside.
        """
        with self._hashing[stored.digest]:
            self._make_sure(stored)
        return stored.path

    def _make_sure(self, stored: Stored) -> None:
        if stored.digest not in self._sound:
            seen = files.identity(stored.path)
            if not self._is_intact(stored.path, stored.digest):
                message = f"the result {stored.key[:12]} is not what was stored"
                self._quarantine(stored, seen, message)
                raise Damaged(message, stored.digest)

    def _action(self, key: str) -> Path:
        return self.root / "actions" / f"{key}.json"

    def _described(self, record: Mapping[str, Any]) -> Stored:
        path = self.root / "objects" / record["digest"]
        return Stored(record["key"], record["digest"], path, tuple(record["outputs"]))

    def _as_it_is(self, stored: Stored) -> Stored | None:
        """``stored`` if sizes and times are as recorded; with today's times if only these differ;
        None if damaged."""
        try:
            with files.guard(self.root):
                found = keys.walk(stored.path)
        except StoreError as error:
            if files.is_damage(error):
                return None
            raise
        if {path: status.st_size for path, status in found.items()} != {
            o["path"]: o["size"] for o in stored.outputs
        }:
            return None
        outputs = tuple({**o, "mtime_ns": found[o["path"]].st_mtime_ns} for o in stored.outputs)
        if outputs == stored.outputs:
            return stored
        return (
            replace(stored, outputs=outputs)
            if self._is_intact(stored.path, stored.digest)
            else None
        )

    def _is_intact(self, path: Path, digest: str) -> bool:
        """Hash all of ``path``. That we cannot look (too many open files, say) is an error, not
        damage."""
        try:
            with files.guard(self.root):
                intact = keys.tree_digest(keys.hash_tree(path)) == digest
        except StoreError as error:
            if files.is_damage(error):
                return False
            raise
        if intact:
            self._sound.add(digest)
        return intact

    # Adding

    def commit(self, key: str, folder: Path, record: Mapping[str, Any]) -> Stored:
        """Take the files of ``folder`` (gone after this) as the result of ``key``.

        ``record`` says what made them; digest, outputs and a digest of the record itself are added.

        Raises:
            StoreError: the disk is full or fails, or a step left something else than plain files.
            StepFailed: the step left no files.
        """
        with files.guard(self.root):
            needed = sum(status.st_size for status in keys.walk(folder).values())
        with (
            files.guard(self.root, needed),
            self._pinning(),
            files.claim(self.root / "tmp") as aside,
        ):
            files.separate(folder)
            times = files.times(
                folder
            )  # before hashing: what changes meanwhile, differs from its record
            entries = keys.hash_tree(folder)
            if not entries:
                raise StepFailed("a step left no files")
            files.seal(folder, times)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            added = {"key": key, "digest": keys.tree_digest(entries), "created": created}
            whole = {"format": keys.FORMAT, **record, **added, "outputs": _outputs(entries, times)}
            files.write(
                aside / "record", keys.seal_record(whole)
            )  # all that takes room comes before the renames
            actual = self._publish(folder, whole["digest"], times)
            if actual != times:
                whole["outputs"] = _outputs(entries, actual)
                files.write(aside / "record", keys.seal_record(whole))
            self._enter(aside / "record", key)
        self._sound.add(whole["digest"])
        return self._described(whole)

    def _publish(self, folder: Path, digest: str, times: dict[str, int]) -> dict[str, int]:
        """Move ``folder`` to its place, unless the same content is there; the files' times as they
        then are."""
        path = self.root / "objects" / digest
        for _ in range(ATTEMPTS):
            with self._gate():
                self._touch_pin(digest)
                moved = files.move_new(folder, path)
            if moved:
                files.flush_folder(path.parent)
                return times
            seen = files.identity(path)
            with contextlib.suppress(
                OSError, StoreError
            ):  # changed under our eyes: not intact either
                times = files.times(path)
            if self._is_intact(path, digest):
                files.remove(folder)
                return times
            self._put_aside(path, seen, f"the stored tree {digest[:12]} was damaged, replacing it")
        raise StoreError(
            f"the stored tree {digest[:12]} keeps being damaged", hint="check the disk"
        )

    def _enter(self, written: Path, key: str) -> None:
        written.replace(self._action(key))
        files.flush_folder(self.root / "actions")

    def _heal(self, record: Mapping[str, Any], current: Stored) -> None:
        """Remember the times that files have now, whose content was just found right; else they are
        hashed again."""
        with (
            contextlib.suppress(StoreError),
            files.guard(self.root),
            files.claim(self.root / "tmp") as aside,
        ):
            files.write(
                aside / "record", keys.seal_record({**record, "outputs": list(current.outputs)})
            )
            self._enter(aside / "record", current.key)

    # Working space, locks, sessions

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of ``key``: others wait, look again, and find the result."""
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        with files.guard(self.root):
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
            with files.guard(self.root, needed_bytes):
                folder = stack.enter_context(files.claim(self.root / "tmp"))
            with files.guard(
                self.root, needed_bytes, free_space.FULL
            ):  # anything else is the caller's own affair
                yield folder

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """While this lasts, everything looked up or committed is safe from collection; so it is
        until we die."""
        with contextlib.ExitStack() as stack:
            with files.guard(self.root):
                folder = stack.enter_context(files.claim(self.root / "pins"))
            self._sessions.append(folder)
            try:
                yield
            finally:
                self._sessions.remove(folder)

    @contextlib.contextmanager
    def _pinning(self) -> Iterator[None]:
        """A session, if there is none: between its tree and its record a result must not be
        collected."""
        with contextlib.nullcontext() if self._sessions else self.session():
            yield

    def _gate(self) -> FileLock:
        return FileLock(self.root / "locks" / "collect.lock", timeout=files.GATE_S)

    def _pin(self, digest: str) -> bool:
        """Pin an object and say whether it is there, as one act with respect to collections."""
        with files.guard(self.root), self._gate():
            self._touch_pin(digest)
            return (self.root / "objects" / digest).is_dir()

    def _touch_pin(self, digest: str) -> None:
        for folder in self._sessions:
            (folder / digest).touch()

    # Damage

    def _quarantine(self, stored: Stored, seen: object, message: str) -> None:
        self._sound.discard(stored.digest)
        path = self._action(stored.key)
        self._put_aside(path, files.identity(path))  # kept as well: ``was_damaged``
        self._put_aside(stored.path, seen, message)

    def was_damaged(self, key: str) -> bool:
        """Of a result that is not to be had: whether there was one, which is damaged or was put
        aside."""
        try:
            return self._described(self.record(key)).path.is_dir()
        except _Missing:
            return any((self.root / "quarantine").glob(f"{key}.json-*"))
        except Damaged:
            return True

    def _put_aside(self, path: Path, seen: object, message: str | None = None) -> None:
        """Move to quarantine what was ``seen`` to be damaged, and nothing that has replaced it
        since."""
        with files.guard(self.root), self._gate():
            if seen is not None and files.identity(path) == seen:
                path.rename(self.root / "quarantine" / f"{path.name}-{uuid.uuid4().hex[:8]}")
        if message:
            self._notify(message)

    def _drop(self, record: Path, seen: object) -> None:
        with files.guard(self.root), self._gate():
            if files.identity(record) == seen:
                record.unlink(missing_ok=True)

    def verify(self) -> list[str]:
        """Hash every tree and every record; put damage aside. One line per finding."""
        findings, broken = [], set()
        for path in sorted((self.root / "objects").iterdir()):
            seen = files.identity(path)
            if not self._is_intact(path, path.name) and path.exists():  # else collected meanwhile
                findings.append(f"the stored tree {path.name[:12]} is damaged")
                self._put_aside(path, seen, findings[-1])
                broken.add(path.name)
        for path in sorted((self.root / "actions").iterdir()):
            seen = files.identity(path)
            try:
                stored = self._described(self.record(path.stem))
            except _Missing:
                continue
            except Damaged as damage:
                findings.append(damage.message)
                self._put_aside(path, seen, damage.message)
                continue
            if stored.digest in broken:
                self._put_aside(path, seen)
            elif not stored.path.is_dir():
                findings.append(f"the result {path.stem[:12]} is gone")
                self._drop(path, seen)
        return findings

    # Size

    def usage(self) -> list[Usage]:
        """One row per record."""
        rows = []
        for record in self.records():
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                used = datetime.datetime.fromtimestamp(
                    self._action(record["key"]).stat().st_mtime, datetime.UTC
                )
                created = datetime.datetime.fromisoformat(record["created"])
                size = sum(output["size"] for output in record["outputs"])
                rows.append(Usage(record["key"], str(record.get("runs", "")), size, created, used))
        return rows

    def gc(self, budget_bytes: int, dry_run: bool = False) -> GcReport:
        """Remove objects, those unused for longest first, until ``budget_bytes`` hold the rest.

        Unfinished downloads are objects here. What running builds need stays. Quarantine, and
        records and objects without their counterpart, go in any case. A dry run reports the same
        and removes nothing.
        """
        quarantine = self.root / "quarantine"
        with files.guard(self.root), self._gate(), downloads.idle(self.root) as (partial, busy):
            sizes = {path.name: files.size_of(path) for path in (self.root / "objects").iterdir()}
            sizes |= {name: download.size_bytes for name, download in partial.items()}
            records = self._last_uses()
            uses = [
                *records.values(),
                *((name, download.used_ns) for name, download in partial.items()),
            ]
            pinned = self._pinned() | (busy if self._locks_work else set(partial))
            removed = files.choose(sizes, uses, pinned, budget_bytes)
            kept = sizes.keys() - set(removed)
            dropped = [path for path, (digest, _) in records.items() if digest not in kept]
            trash = list(quarantine.iterdir())
            freed = sum(sizes[digest] for digest in removed) + sum(
                map(files.size_of, [*dropped, *trash])
            )
            if not dry_run:
                for path in dropped:  # first, so that no record ever points nowhere
                    path.unlink(missing_ok=True)
                for name in partial.keys() & set(removed):
                    downloads.remove(partial[name])
                for digest in (
                    set(removed) - partial.keys()
                ):  # renamed, so that nobody sees half a tree
                    trash.append(
                        quarantine / f"{digest}-{uuid.uuid4().hex[:8]}"
                    )  # no new folder: the disk is full
                    (self.root / "objects" / digest).rename(trash[-1])
        if not dry_run:
            with files.guard(self.root):
                for path in trash:
                    files.remove(path)
        return GcReport(removed, freed, sum(sizes[digest] for digest in kept))

    def _pinned(self) -> set[str]:
        """Digests that running builds need. A build that ends just now needs none."""
        self._sweep("pins")
        pinned: set[str] = set()
        for session in (self.root / "pins").iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                pinned |= {pin.name for pin in session.iterdir()}
        return pinned

    def _last_uses(self) -> dict[Path, tuple[str, int]]:
        """Path of each record → digest of its object ("": the record is damaged), time of its last
        use."""
        found = {}
        for path in (self.root / "actions").iterdir():
            digest = ""
            with contextlib.suppress(FileNotFoundError, _Missing):
                moment = path.stat().st_mtime_ns
                with contextlib.suppress(Damaged):
                    digest = str(self.record(path.stem)["digest"])
                found[path] = (digest, moment)
        return found

    # Leaving the store

    def materialise(self, stored: Stored, target: Path) -> bool:
        """Make ``target`` a copy of ``stored``; False if it is one already, by names, sizes and
        times.

        Raises:
            StoreError: ``target`` is a file, or a folder that phipipe did not write (no
                ``manifest.json``).
            Damaged: see ``consume``.
        """
        times, sizes = (
            {str(o["path"]): int(o[key]) for o in stored.outputs} for key in ("mtime_ns", "size")
        )
        if (
            self._locks_work and target.parent.is_dir()
        ):  # a killed copy may have left the old one beside a good new one
            with files.guard(target.parent, remedy=free_space.KEEP_OUT):
                files.sweep(target.parent, f".{target.name}.")
        if files.is_copy(target, {path: (sizes[path], times[path]) for path in times}):
            return False
        files.check_replaceable(target)
        source = self.consume(stored)
        with files.guard(target.parent, stored.size_bytes, remedy=free_space.KEEP_OUT):
            files.export(source, times, target)
        return True


class _Missing(StoreError):
    """There is no record under this key."""


def _outputs(entries: Iterable[keys.FileEntry], times: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"path": e.path, "size": e.size, "sha256": e.sha256, "mtime_ns": times[e.path]}
        for e in entries
    ]

"""Results by content: ``objects/<digest>/`` are trees of read-only files, ``actions/<key>.json`` say what made them.

What is visible is complete: a tree is built aside, flushed, renamed into place, and only then is its record
written. Locks save work; correctness never depends on them. Whoever is killed leaves nothing visible, and what
lies in ``tmp`` is swept by the next process, which sees that its owner's lock is free.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from phipipe import keys
from phipipe.errors import StoreError

FOLDERS = ("objects", "actions", "locks", "tmp", "quarantine", "pins")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A phipipe cache: everything here can be made again.\n"
ABOUT = """This folder is phipipe's cache. Do not edit it; `phipipe cache ls|verify|gc` looks after it.
Deleting it is safe while no phipipe runs: everything in it is made again when it is needed.
"""


class Damaged(StoreError):
    """A stored tree is not what was stored. It has been put aside; making it again is all that is needed."""

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


@dataclass(frozen=True)
class Usage:
    """One row of ``cache ls``."""

    key: str
    runs: str
    size_bytes: int
    created: datetime.datetime
    used: datetime.datetime


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or in a dry run would: digests, bytes of files."""

    removed: tuple[str, ...]
    freed_bytes: int
    kept_bytes: int


class Store:
    """The store in ``root``, made if it is not there.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, notify: Callable[[str], None] = lambda line: None) -> None:
        self.root, self._notify = root, notify
        self._session: Path | None = None
        self._verified: set[str] = set()
        with writing(root):
            for name in FOLDERS:
                (root / name).mkdir(parents=True, exist_ok=True)
            for name, text in (("CACHEDIR.TAG", TAG), ("README.txt", ABOUT)):
                if not (root / name).exists():
                    (root / name).write_text(text, "utf-8")
            self._sweep()

    # What is there

    def record(self, key: str) -> dict[str, Any]:
        """The record of ``key``, intact.

        Raises:
            StoreError: there is none, or it was changed since it was written.
        """
        path = self.root / "actions" / f"{key}.json"
        try:
            value = json.loads(path.read_bytes())
            if value["check"] != _check(value) or value["key"] != key:
                raise ValueError
        except FileNotFoundError:
            raise StoreError(f"nothing is stored under {key[:12]}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(f"the record {key[:12]} was changed since it was written") from None
        return dict(value)

    def records(self) -> Iterator[dict[str, Any]]:
        """All intact records."""
        for path in sorted((self.root / "actions").glob("*.json")):
            with contextlib.suppress(StoreError):
                yield self.record(path.stem)

    def peek(self, key: str) -> Stored | None:
        """What ``lookup`` would find, changing nothing."""
        try:
            stored = self._stored(self.record(key))
        except StoreError:
            return None
        return stored if self._state(stored) != "damaged" else None

    def lookup(self, key: str) -> Stored | None:
        """The result stored under ``key``: pinned, its files' sizes and times as recorded, else hashed again.

        Damage is put aside, said, and None returned.
        """
        path = self.root / "actions" / f"{key}.json"
        if not path.is_file():
            return None
        try:
            stored = self._stored(self.record(key))
        except StoreError as error:
            self._put_aside(path, error.message)
            return None
        if not self._pin(stored.digest):
            self._notify(f"the result {key[:12]} is gone from the cache, building it again")
            path.unlink(missing_ok=True)
            return None
        state = self._state(stored)
        if state == "damaged":
            self._quarantine(stored, f"the result {key[:12]} was changed in the cache, building it again")
            return None
        if state == "touched":
            stored = self._heal(key, stored)
        with contextlib.suppress(OSError):  # a read-only cache still serves
            os.utime(path)
        return stored

    def consume(self, stored: Stored) -> Path:
        """The folder of ``stored`` after hashing all of it, once per process.

        Raises:
            Damaged: the content is not what was stored; it has been put aside.
        """
        if stored.digest not in self._verified:
            if not _intact(stored):
                message = f"the result {stored.key[:12]} is not what was stored"
                self._quarantine(stored, message)
                raise Damaged(message, stored.digest)
            self._verified.add(stored.digest)
        return stored.path

    # Adding

    def commit(self, key: str, folder: Path, record: Mapping[str, Any]) -> Stored:
        """Take the files of ``folder`` (emptied by this) as the result of ``key``.

        ``record`` says what made them; digest, outputs and a digest of the record itself are added.

        Raises:
            StoreError: the disk is full or fails, or a step left something else than plain files.
        """
        with writing(self.root):
            entries = keys.hash_tree(folder)
            digest = keys.tree_digest(entries)
            _seal(folder)
            with self._gc_lock():  # short: no collection between the rename and the record
                self._pin_only(digest)
                path = self._publish(folder, digest, entries)
                times = {e.path: (path / e.path).stat().st_mtime_ns for e in entries}
                outputs = [
                    {"path": e.path, "size": e.size, "sha256": e.sha256, "mtime_ns": times[e.path]} for e in entries
                ]
                created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                self._write_record({**record, "key": key, "digest": digest, "outputs": outputs, "created": created})
        self._verified.add(digest)
        return Stored(key, digest, path, tuple(outputs))

    def _publish(self, folder: Path, digest: str, entries: list[keys.FileEntry]) -> Path:
        path = self.root / "objects" / digest
        for _ in range(3):
            if path.is_dir():
                if keys.tree_digest(keys.hash_tree(path)) == digest:
                    _remove(folder)
                    return path
                self._put_aside(path, f"the stored tree {digest[:12]} was damaged, replacing it")
            try:
                folder.rename(path)
            except OSError as error:  # another process was first
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not isinstance(error, PermissionError):
                    raise
                if not path.is_dir():
                    raise
                continue
            _flush(path.parent)
            return path
        raise StoreError(f"the stored tree {digest[:12]} keeps being damaged", hint="check the disk")

    def _write_record(self, record: dict[str, Any]) -> None:
        path = self.root / "actions" / f"{record['key']}.json"
        record.pop("check", None)
        _write(path, json.dumps({**record, "check": _check(record)}, indent=1).encode(), self.root / "tmp")

    # Working space, locks, sessions

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of ``key``: others wait, look again, and find the result."""
        with writing(self.root), FileLock(self.root / "locks" / f"{key[:48]}.lock"):
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed at the end whatever happens."""
        with self._owned("tmp") as folder:
            yield folder

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """While this lasts, everything looked up or committed is safe from collection; so it is until we die."""
        with self._owned("pins") as folder:
            self._session = folder
            try:
                yield
            finally:
                self._session = None

    @contextlib.contextmanager
    def _owned(self, kind: str) -> Iterator[Path]:
        folder = self.root / kind / uuid.uuid4().hex
        lock = FileLock(folder.with_suffix(".lock"))
        with writing(self.root):
            lock.acquire()
            folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)
            lock.release()
            folder.with_suffix(".lock").unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what dead processes left in ``tmp`` and ``pins``: their locks are free."""
        for kind in ("tmp", "pins"):
            for path in (self.root / kind).iterdir():
                lock = path if path.suffix == ".lock" else path.with_suffix(".lock")
                try:
                    with FileLock(lock, blocking=False):
                        _remove(lock.with_suffix(""))
                    lock.unlink(missing_ok=True)
                except (Timeout, OSError):  # in use, or not ours to sweep
                    continue

    def _gc_lock(self) -> FileLock:
        return FileLock(self.root / "locks" / "collect.lock")

    def _pin(self, digest: str) -> bool:
        """Pin an object and say whether it is there, as one act with respect to collections."""
        if self._session is None:
            return (self.root / "objects" / digest).is_dir()
        with writing(self.root), self._gc_lock():
            self._pin_only(digest)
            return (self.root / "objects" / digest).is_dir()

    def _pin_only(self, digest: str) -> None:
        if self._session is not None:
            (self._session / digest).touch()

    # Damage

    def _stored(self, record: Mapping[str, Any]) -> Stored:
        return Stored(
            record["key"], record["digest"], self.root / "objects" / record["digest"], tuple(record["outputs"])
        )

    def _state(self, stored: Stored) -> str:
        """ "fresh": sizes and times as recorded; "touched": other times, same content; "damaged"."""
        try:
            names = keys.list_files(stored.path)
            found = [(stored.path / name).stat() for name in names]
        except (OSError, StoreError):
            return "damaged"
        if [(n, s.st_size) for n, s in zip(names, found, strict=True)] != [
            (o["path"], o["size"]) for o in stored.outputs
        ]:
            return "damaged"
        if [s.st_mtime_ns for s in found] == [o["mtime_ns"] for o in stored.outputs]:
            return "fresh"
        return "touched" if _intact(stored) else "damaged"

    def _heal(self, key: str, stored: Stored) -> Stored:
        """Record the present times of files whose content was just found to be right."""
        outputs = tuple({**o, "mtime_ns": (stored.path / str(o["path"])).stat().st_mtime_ns} for o in stored.outputs)
        self._verified.add(stored.digest)
        with contextlib.suppress(StoreError), writing(self.root):
            self._write_record({**self.record(key), "outputs": list(outputs)})
        return Stored(stored.key, stored.digest, stored.path, outputs)

    def _quarantine(self, stored: Stored, message: str) -> None:
        self._verified.discard(stored.digest)
        (self.root / "actions" / f"{stored.key}.json").unlink(missing_ok=True)
        self._put_aside(stored.path, message)

    def _put_aside(self, path: Path, message: str) -> None:
        self._notify(message)
        with contextlib.suppress(FileNotFoundError):  # another process did it
            path.rename(self.root / "quarantine" / f"{path.name}-{uuid.uuid4().hex[:8]}")

    def verify(self) -> list[str]:
        """Hash every record and every tree; put damage aside. One line per finding."""
        findings, good = [], set()
        for path in sorted((self.root / "actions").glob("*.json")):
            try:
                stored = self._stored(self.record(path.stem))
            except StoreError as error:
                self._put_aside(path, error.message)
                findings.append(error.message)
                continue
            if stored.digest not in good and not _intact(stored):
                message = f"the result {path.stem[:12]} is not what was stored"
                self._quarantine(stored, message)
                findings.append(message)
                continue
            good.add(stored.digest)
        return findings

    # Size

    def usage(self) -> list[Usage]:
        """One row per record."""
        rows = []
        for record in self.records():
            path = self.root / "actions" / f"{record['key']}.json"
            used = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
            created = datetime.datetime.fromisoformat(record["created"])
            size = self._stored(record).size_bytes
            rows.append(Usage(record["key"], str(record.get("runs", "")), size, created, used))
        return rows

    def gc(self, budget_bytes: int, dry_run: bool = False) -> GcReport:
        """Remove trees, those unused for longest first, until ``budget_bytes`` hold the rest.

        Trees of running builds stay. Quarantined and orphaned trees go first. A dry run reports the same
        and removes nothing.
        """
        trash = self.root / "tmp" / f"trash-{uuid.uuid4().hex}"
        with writing(self.root), self._gc_lock():
            sizes = {p.name: _size(p) for p in (self.root / "objects").iterdir()}
            last = self._last_uses()
            pinned = self._pinned()
            total, removed = sum(sizes.values()), []
            for digest in sorted(sizes, key=lambda d: (last.get(d, 0), d)):
                if digest not in pinned and (digest not in last or total > budget_bytes):
                    removed.append(digest)
                    total -= sizes[digest]
            aside = list((self.root / "quarantine").iterdir())
            freed = sum(sizes[digest] for digest in removed) + sum(_size(path) for path in aside)
            if not dry_run:
                trash.mkdir()
                for path in [*(self.root / "objects" / digest for digest in removed), *aside]:
                    path.rename(trash / path.name)
                self._drop_records(set(removed))
        _remove(trash)
        return GcReport(tuple(removed), freed, total)

    def _last_uses(self) -> dict[str, int]:
        uses: dict[str, int] = {}
        for record in self.records():
            used = (self.root / "actions" / f"{record['key']}.json").stat().st_mtime_ns
            uses[record["digest"]] = max(used, uses.get(record["digest"], 0))
        return uses

    def _pinned(self) -> set[str]:
        """Digests pinned by sessions that live; those of dead ones were swept or are swept here."""
        self._sweep()
        return {p.name for folder in (self.root / "pins").iterdir() if folder.is_dir() for p in folder.iterdir()}

    def _drop_records(self, digests: set[str]) -> None:
        for record in self.records():
            if record["digest"] in digests:
                (self.root / "actions" / f"{record['key']}.json").unlink(missing_ok=True)

    # Leaving the store

    def materialise(self, stored: Stored, target: Path) -> bool:
        """Make ``target`` a copy of ``stored``; False if it is one already, by names, sizes and times.

        Raises:
            StoreError: ``target`` is a file, or a folder that phipipe did not write (no ``manifest.json``).
            Damaged: see ``consume``.
        """
        if _is_copy(stored, target):
            return False
        if target.is_symlink() or target.is_file():
            raise StoreError(f"`{target}` is in the way: it is no folder", hint="remove it, or choose another --out")
        if target.is_dir() and any(target.iterdir()) and not (target / "manifest.json").is_file():
            raise StoreError(
                f"`{target}` holds files that phipipe did not write", hint="empty it, or choose another --out"
            )
        source = self.consume(stored)
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                for output in stored.outputs:
                    (aside / str(output["path"])).parent.mkdir(parents=True, exist_ok=True)
                    copy(source / str(output["path"]), aside / str(output["path"]))
                if target.exists():
                    target.rename(aside.with_suffix(".old"))
                aside.rename(target)
            finally:
                _remove(aside)
                _remove(aside.with_suffix(".old"))
        return True


def copy(source: Path, target: Path) -> None:
    """Copy content and times; by reflink where the file system shares blocks, never by link."""
    if not _reflink(source, target):
        shutil.copyfile(source, target)
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _reflink(source: Path, target: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    ficlone = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), ficlone, reader.fileno())
        except OSError:
            return False
    return True


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an operating system's refusal into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        free = None
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        reason = error.strerror or str(error)
        if error.errno in FULL:
            room = "" if free is None else f", {free / 2**20:.0f} MiB free"
            raise StoreError(
                f"no room left in `{folder}` ({reason}{room})",
                hint="phipipe cache gc --budget GIB, or set PHIPIPE_CACHE to a larger disk",
            ) from error
        raise StoreError(
            f"cannot write to `{folder}`: {reason}", hint="set PHIPIPE_CACHE to a folder that you can write"
        ) from error


def _check(record: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "check"}
    return hashlib.sha256(b"phipipe record\0" + keys.canonical(rest)).hexdigest()


def _intact(stored: Stored) -> bool:
    try:
        entries = keys.hash_tree(stored.path)
        return keys.tree_digest(entries) == stored.digest
    except (OSError, StoreError):
        return False


def _is_copy(stored: Stored, target: Path) -> bool:
    try:
        names = keys.list_files(target)
        found = [(n, s.st_size, s.st_mtime_ns) for n in names for s in [(target / n).stat()]]
    except (OSError, StoreError):
        return False
    return found == [(o["path"], o["size"], o["mtime_ns"]) for o in stored.outputs]


def _seal(folder: Path) -> None:
    """Flush every file and folder to the disk, then make the files read-only."""
    folders = [folder]
    for path in folder.rglob("*"):
        if path.is_dir():
            folders.append(path)
            continue
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    for path in reversed(folders):
        _flush(path)


def _flush(folder: Path) -> None:
    """Flush a folder's own entries, where the system can (Windows cannot, and need not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes, aside: Path) -> None:
    """Replace ``path`` as a whole: written and flushed in ``aside`` first."""
    lock = FileLock(aside / f"{uuid.uuid4().hex}.lock")
    temporary = Path(lock.lock_file).with_suffix("")
    with lock:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    _flush(path.parent)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _remove(path: Path) -> None:
    """Remove a file or a tree, read-only files included; what is gone already is fine."""

    def force(function: Callable[[str], Any], name: str, _error: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(name).chmod(stat.S_IRWXU)
            function(name)

    if path.is_file() or path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    elif path.is_dir():
        shutil.rmtree(path, onerror=force)

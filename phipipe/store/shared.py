"""Results shared between machines: the records and files of the store, also in S3, GCS, Azure or a
shared folder.

``actions/<key>.json`` is a result's record as the store has it, ``blobs/<sha256>`` a file's
content, so that equal files lie there once; of a large file there are pieces, ``blobs/<sha256>.0``
and so on, so that uploads and downloads which are cut short go on from the last one.
``claims/<key>`` says that somebody is making that result. A record is written last and only where
there is none. Nothing that is read is believed: a record carries its own digest, a file is named by
its own, and what turns out wrong is said, built again, and replaced.

No machine's clock is compared with another's: a claim is taken over when it has not changed for
``STALE_S`` by the waiting machine's own clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock

from phipipe import progress
from phipipe.errors import RecipeError, StoreError, ToolchainError
from phipipe.settings import SECRET, Settings
from phipipe.store import files, keys
from phipipe.store.store import Store, Stored

PIECE = (
    16 * 2**20
)  # bytes of an object at most: what a dying connection costs. Another number is another layout
UPLOADS = 4  # pieces that are sent side by side
MIB = 2**20
REQUEST_S, CONNECT_S, RETRIES = 60, 10, 3
HEARTBEAT_S, STALE_S, POLL_S = 5.0, 30.0, 1.0
PARTS_DAYS = 7  # unfinished downloads that nobody has gone on with for so long are removed


# Who makes what is made in this thread, where somebody sees to it that one machine at a time does
# so in that name.
OWNER: ContextVar[str | None] = ContextVar("OWNER", default=None)


class _Unfit(Exception):
    """Something there is not what it should be."""


def connect(settings: Settings, note: Callable[[str], None]) -> Remote | None:
    """The remote store that ``settings`` name; None if they name none. Nothing is asked of it yet.

    Raises:
        RecipeError: its address makes no sense.
        ToolchainError: obstore is not installed.
    """
    if settings.remote is None:
        return None
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise ToolchainError(
            "PHIPIPE_REMOTE needs obstore, which is not installed",
            hint="pip install 'phipipe[remote]', or unset it",
        ) from None
    return Remote(settings.remote, note, writes=settings.remote_writes)


def _open(url: str) -> Any:
    """obstore's store for ``url``; credentials come from the environment, as each provider's own
    tools read them."""
    from obstore import store

    if url.startswith("file://"):
        return store.LocalStore.from_url(url, mkdir=True)
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=REQUEST_S),
        "connect_timeout": timedelta(seconds=CONNECT_S),
    }
    named = (
        os.environ.get(name, "")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
    )
    endpoint = next(filter(None, named), "")
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=2 * REQUEST_S)}
    more = {"endpoint": endpoint} if endpoint and url.startswith("s3://") else {}
    opened: Any = store.from_url  # its overloads are by provider, ours are all of them
    return opened(url, client_options=options, retry_config=retry, **more)


class Remote:
    """The shared store at ``url``. After its first failure to answer it is left alone, and ``note``
    is told.

    Methods may be called from several threads.
    """

    def __init__(self, url: str, note: Callable[[str], None], *, writes: bool = True) -> None:
        self.url, self._note, self.writes, self._asked = url, note, writes, writes
        self.reads = True
        self._failures = _failures()
        self._unfit: set[str] = set()  # paths there whose content was found wrong
        self._shared: set[str] = set()  # keys of results that are there, as far as ``_notes`` says
        self._notes: Path | None = None
        try:
            self._there = _open(url)
        except Exception as error:  # noqa: BLE001 (obstore raises many kinds for an address that it cannot use)
            raise RecipeError(f"PHIPIPE_REMOTE `{url}` cannot be used: {told(error)}") from None

    def again(self) -> None:
        """Forget earlier failures."""
        self.reads, self.writes = True, self._asked

    def fetch(self, key: str, store: Store, *, anew: bool = False) -> Stored | None:
        """The result ``key``, brought into ``store``; None if it is not there, or not right.

        What was found wrong before is asked for again with ``anew`` only: it may have been
        replaced.
        """
        if not self.reads or (_action(key) in self._unfit and not anew):
            return None
        try:
            return self._fetch(key, store)
        except _Unfit as error:
            self._unfit.add(_action(key))
            self._note(f"the shared result {key[:12]} is damaged ({error}), building it again")
        except StoreError:
            raise
        except self._failures as error:
            self._stop_reading(error)
        return None

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of the result ``key`` there; None if there is none, or a damaged one."""
        try:
            raw = self._get(_action(key))
            return None if raw is None else keys.open_record(raw, key)
        except StoreError:
            return None
        except self._failures as error:
            self._stop_reading(error)
            return None

    def _fetch(self, key: str, store: Store) -> Stored | None:
        raw = self._get(_action(key))
        if raw is None:
            return None
        try:
            record = keys.open_record(raw, key)
            entries = [
                keys.FileEntry(o["path"], int(o["size"]), o["sha256"]) for o in record["outputs"]
            ]
            if keys.tree_digest(entries) != record["digest"]:
                raise _Unfit("its list of files is not its own")
        except (StoreError, KeyError, TypeError, ValueError):
            raise _Unfit("its record is not what was written") from None
        with store.scratch(sum(entry.size for entry in entries)) as scratch:
            for entry in entries:
                target = scratch / "out" / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(entry, store.root / "remote", target)
            made = {
                name: record[name]
                for name in record
                if name not in ("key", "digest", "created", "outputs")
            }
            stored = store.commit(key, scratch / "out", made)
        self._remember(key, store)
        return stored

    def _download(self, entry: keys.FileEntry, parts: Path, target: Path) -> None:
        """A file's content, from where an earlier run was cut short, hashed while it comes."""
        parts.mkdir(parents=True, exist_ok=True)
        _sweep(parts)
        part, pieces = parts / entry.sha256, _pieces(entry.sha256, entry.size)
        with FileLock(parts / f"{entry.sha256}.lock"):
            digest = _hashed(part)
            at = part.stat().st_size if part.exists() else 0
            with part.open("ab") as stream:
                for name, start, end in pieces:
                    if start <= at < end:
                        content = self._range(name, at - start, end - start)
                        with files.guard(parts.parent, entry.size - at):
                            stream.write(content)
                        digest.update(content)
                        at += len(content)
                        _say_how_far(at, entry.size)
            if at != entry.size or digest.hexdigest() != entry.sha256:
                part.unlink()
                self._unfit.update(name for name, *_ in pieces)
                raise _Unfit(f"`{entry.path}` has another content")
            part.replace(target)

    def _range(self, name: str, start: int, end: int) -> bytes:
        import obstore
        from obstore.exceptions import GenericError, NotFoundError

        try:
            found = bytes(obstore.get_range(self._there, name, start=start, end=end))
        except (NotFoundError, FileNotFoundError):
            raise _Unfit(f"`{name[:18]}` is gone") from None
        except GenericError as error:
            if (
                self._size(name) < end
            ):  # a range beyond the end is an error of its own with every provider
                self._unfit.add(name)
                raise _Unfit(f"`{name[:18]}` is cut short") from None
            raise error
        if len(found) != end - start:
            self._unfit.add(name)
            raise _Unfit(f"`{name[:18]}` is cut short")
        return found

    def offer(self, stored: Stored, store: Store) -> None:
        """Share ``stored``, whose record comes last, unless there is one. That it cannot be is
        said, no failure."""
        if not (self.reads and self.writes):
            return
        try:
            for output in stored.outputs:
                self._upload(output["sha256"], stored.path / output["path"], int(output["size"]))
            sealed = keys.seal_record(store.record(stored.key))
            self._put(_action(stored.key), sealed, replace=_action(stored.key) in self._unfit)
            self._remember(stored.key, store)
        except self._failures as error:
            self.writes = False
            self._note(
                f"{self._name} does not take results ({told(error)}): from here on they stay on "
                f"this machine; "
                "PHIPIPE_REMOTE_MODE=read if that is as it should be"
            )

    def lacks(self, key: str, store: Store) -> bool:
        """Whether the result ``key`` of ``store`` is still to be shared: an upload was cut short,
        or it is older than the sharing. Asks nobody: what was shared is remembered in ``store``."""
        return self.reads and self.writes and key not in self._remembered(store)

    def _remembered(self, store: Store) -> set[str]:
        if self._notes is None:
            self._notes = (
                store.root
                / "remote"
                / f"{hashlib.sha256(self.url.encode()).hexdigest()[:16]}.shared"
            )
            with contextlib.suppress(OSError):
                self._shared |= set(self._notes.read_text("ascii", errors="replace").split())
        return self._shared

    def _remember(self, key: str, store: Store) -> None:
        if key in self._remembered(store):
            return
        self._shared.add(key)
        assert self._notes is not None
        with contextlib.suppress(OSError):  # it is offered once more, then
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            with self._notes.open("a", encoding="ascii") as stream:
                stream.write(f"{key}\n")

    @contextlib.contextmanager
    def turn(self, key: str, store: Store) -> Iterator[Stored | None]:
        """The result ``key`` if there is one; or None, and while this lasts others wait for us to
        make it."""
        while True:
            found = self.fetch(key, store)
            if found is not None or not (self.reads and self.writes):
                yield found
                return
            mine = self._claim(key)
            if mine is not None:
                break
        with mine:
            yield self.fetch(key, store)  # whoever held it before may have ended just now

    def _claim(self, key: str) -> contextlib.AbstractContextManager[None] | None:
        """A claim on ``key``; None when another's has ended, or was given up, and one must look
        again."""
        name = f"claims/{key}"
        try:
            owner = OWNER.get() or uuid.uuid4().hex
            if self._put(name, _beat(owner)):
                return self._holding(name, owner)
            seen, since = self._get(name), time.monotonic()
            if seen is not None and seen.startswith(f"{owner} ".encode()):
                return self._holding(name, owner)
            self._note(f"waiting for another machine, which builds {key[:12]}")
            while seen is not None:
                time.sleep(POLL_S)
                now = self._get(name)
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > STALE_S:
                    self._note(f"the other machine has gone quiet, building {key[:12]} here")
                    self._delete(name)
                    return None
        except self._failures as error:
            self._stop_reading(error)
        return None

    @contextlib.contextmanager
    def _holding(self, name: str, owner: str) -> Iterator[None]:
        """Say that we are alive, every few seconds, until the result is there."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                with contextlib.suppress(
                    *self._failures
                ):  # others take over, and build it once more
                    self._put(name, _beat(owner), replace=True)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(*self._failures):
                self._delete(name)

    # Single requests

    def _get(self, name: str) -> bytes | None:
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            return bytes(obstore.get(self._there, name).bytes())
        except (NotFoundError, FileNotFoundError):
            return None

    def _put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Whether it is written; without ``replace`` it is not where there is one."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(self._there, name, content, mode="overwrite" if replace else "create")
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            return False
        return True

    def _upload(self, sha256: str, path: Path, size: int) -> None:
        """A file, or what is missing of it."""
        pieces = _pieces(sha256, size)
        if len(pieces) == 1:
            self._upload_piece(path, *pieces[0])
            return
        with ThreadPoolExecutor(UPLOADS) as pool:
            for end in pool.map(lambda piece: self._upload_piece(path, *piece), pieces):
                _say_how_far(end, size)

    def _upload_piece(self, path: Path, name: str, start: int, end: int) -> int:
        """Bytes ``start`` to ``end`` of a file, unless they are there: then they are the same,
        whoever wrote them."""
        if name in self._unfit or self._size(name) != end - start:
            with path.open("rb") as stream:
                stream.seek(start)
                self._put(name, stream.read(end - start), replace=True)
            self._unfit.discard(name)
        return end

    def _size(self, name: str) -> int:
        """In bytes; -1 if it is not there."""
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            return int(obstore.head(self._there, name)["size"])
        except (NotFoundError, FileNotFoundError):
            return -1

    def _delete(self, name: str) -> None:
        import obstore
        from obstore.exceptions import NotFoundError

        with contextlib.suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._there, name)

    def _stop_reading(self, error: Exception) -> None:
        if self.reads:
            self.reads = False
            self._note(f"{self._name} does not answer ({told(error)}): going on without it")

    @property
    def _name(self) -> str:
        return f"the shared store {self.url}"


def _failures() -> tuple[type[Exception], ...]:
    """What obstore raises when a store does not do what it is asked."""
    from obstore.exceptions import BaseError

    return BaseError, OSError


def _beat(owner: str) -> bytes:
    return f"{owner} {uuid.uuid4().hex}".encode()


def _pieces(sha256: str, size: int) -> list[tuple[str, int, int]]:
    """The objects that hold a file's content, and at which byte each begins and ends."""
    if size <= PIECE:
        return [(f"blobs/{sha256}", 0, size)]
    starts = range(0, size, PIECE)
    return [
        (f"blobs/{sha256}.{i}", start, min(start + PIECE, size)) for i, start in enumerate(starts)
    ]


def _say_how_far(done: int, size: int) -> None:
    if size > PIECE:
        progress.report(done // MIB, size // MIB, "MiB")


def _action(key: str) -> str:
    return f"actions/{key}.json"


def _hashed(path: Path) -> Any:
    """SHA-256 of what ``path`` holds so far."""
    digest = hashlib.sha256()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        while piece := stream.read(MIB):
            digest.update(piece)
    return digest


def _sweep(parts: Path) -> None:
    """Remove unfinished downloads that are old."""
    oldest = time.time() - 86400 * PARTS_DAYS
    for path in parts.glob("*"):
        with contextlib.suppress(OSError):
            if path.suffix not in (".lock", ".shared") and path.stat().st_mtime < oldest:
                files.remove(path)


def told(error: Exception) -> str:
    """What went wrong, in one line, without anything that the environment keeps secret."""
    kind = type(error).__name__
    words = {
        "PermissionDeniedError": "permission denied",
        "UnauthenticatedError": "no valid credentials",
        "NotFoundError": "no such bucket",
    }
    if kind in words:
        return words[kind]
    text = re.sub(r"\s+", " ", str(error).partition("Debug source")[0]).strip()
    for name, value in os.environ.items():
        if value and SECRET.search(name):
            text = text.replace(value, "***")
    causes = re.findall(
        r"(?:client error|tcp connect error|dns error|[Cc]onnection refused|timed out)[^,:()]*",
        text,
    )
    return causes[-1].strip() if causes else (text[:200] or kind)

"""Results shared between machines: the records and files of the store, also in S3, GCS, Azure or a
shared folder.

``actions/<key>.json`` is a result's record as the store has it; its files are ``blobs``, so that
equal files lie there once; ``turns`` keep two machines from making the same. A record is written
last and only where there is none. Nothing that is read is believed: a record carries its own
digest, a file is named by its own, and what turns out wrong is said, built again, and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import RecipeError, StoreError, ToolchainError
from phipipe.settings import SECRET, Settings
from phipipe.steps import Json
from phipipe.store import keys
from phipipe.store.blobs import Blobs, Unfit
from phipipe.store.records import Stored
from phipipe.store.store import Store
from phipipe.store.turns import Turns
from phipipe.words import unanswered

if TYPE_CHECKING:
    from phipipe.store.bucket import Bucket

# of a record: what each store adds itself
OWN = ("key", "digest", "created", "outputs", "place", "left", "within")


def connect(settings: Settings, note: Callable[[str], None]) -> SharedStore | None:
    """The shared store that ``settings`` name; None if they name none. Nothing is asked of it yet.

    Raises:
        RecipeError: its address makes no sense.
        ToolchainError: obstore is not installed.
    """
    if settings.remote is None:
        return None
    return SharedStore(settings.remote, note, writes=settings.remote_writes)


def open_bucket(url: str) -> Bucket:
    """The bucket or folder at ``url``. Nothing is asked of it yet.

    Raises:
        RecipeError: its address makes no sense.
        ToolchainError: obstore is not installed.
    """
    try:
        import obstore  # noqa: F401

        from phipipe.store.bucket import Bucket
    except ImportError:
        raise ToolchainError(
            "PHIPIPE_REMOTE needs obstore, which is not installed",
            hint="pip install 'phipipe[remote]', or unset it",
        ) from None
    try:
        return Bucket(url)
    except Exception as error:  # noqa: BLE001 (obstore raises many kinds)
        message = f"PHIPIPE_REMOTE `{url}` cannot be used: {describe(error)}"
        raise RecipeError(message) from None


class SharedStore:
    """The shared store at ``url``. After its first failure to answer it is left alone, and ``note``
    is told.

    Methods may be called from several threads.
    """

    def __init__(self, url: str, note: Callable[[str], None], *, writes: bool = True) -> None:
        self.url, self._note, self.writes, self._asked = url, note, writes, writes
        self.reads = True
        self._bucket = open_bucket(url)
        self._blobs, self._turns = Blobs(self._bucket), Turns(self._bucket, note)
        self._unfit: set[str] = set()  # keys of records there that were found wrong
        self._shared: set[str] = set()  # keys of results that are there, as far as ``_notes`` says
        self._notes: Path | None = None

    def again(self) -> None:
        """Forget earlier failures."""
        self.reads, self.writes = True, self._asked

    def fetch(self, key: str, store: Store, *, anew: bool = False) -> Stored | None:
        """The result ``key``, brought into ``store``; None if it is not there, or not right.

        What was found wrong before is asked for again with ``anew`` only: it may have been
        replaced.
        """
        if not self.reads or (key in self._unfit and not anew):
            return None
        try:
            return self._fetch(key, store)
        except Unfit as error:
            self._unfit.add(key)
            self._note(f"the shared result {key[:12]} is damaged ({error}), building it again")
        except StoreError:
            raise
        except self._bucket.FAILURES as error:
            self._stop_reading(error)
        return None

    def record(self, key: str) -> dict[str, Json] | None:
        """The record of the result ``key`` there; None if there is none, or a damaged one."""
        try:
            raw = self._bucket.get(_action(key))
            return None if raw is None else keys.open_record(raw, key)
        except StoreError:
            return None
        except self._bucket.FAILURES as error:
            self._stop_reading(error)
            return None

    def _fetch(self, key: str, store: Store) -> Stored | None:
        raw = self._bucket.get(_action(key))
        if raw is None:
            return None
        try:
            record = keys.open_record(raw, key)
            entries = _entries(record)
        except (StoreError, KeyError, TypeError, ValueError):
            raise Unfit("its record is not what was written") from None
        with store.scratch(sum(entry.size for entry in entries)) as scratch:
            for entry in entries:
                target = scratch / "out" / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._blobs.download(entry, store.root / "remote", target)
            made_by = {name: value for name, value in record.items() if name not in OWN}
            stored = store.commit(key, scratch / "out", made_by)
        self._remember(key, store)
        return stored

    def offer(self, stored: Stored, store: Store) -> None:
        """Share ``stored``, whose record comes last, unless there is one. That it cannot be is
        said, no failure. What has no tree here is not shared: its record alone helps nobody."""
        if not (self.reads and self.writes and stored.is_whole):
            return
        try:
            for output in stored.outputs:
                path = stored.path / output["path"]
                self._blobs.upload(output["sha256"], path, int(output["size"]))
            sealed = keys.seal_record(store.record(stored.key))
            self._bucket.put(_action(stored.key), sealed, replace=stored.key in self._unfit)
            self._remember(stored.key, store)
        except self._bucket.FAILURES as error:
            self.writes = False
            self._note(
                f"{self._name} does not take results ({describe(error)}): from here on they stay "
                "on this machine; PHIPIPE_REMOTE_MODE=read if that is as it should be"
            )

    def lacks(self, key: str, store: Store) -> bool:
        """Whether the result ``key`` of ``store`` is still to be shared: an upload was cut short,
        or it is older than the sharing. Asks nobody: what was shared is remembered in ``store``."""
        return self.reads and self.writes and key not in self._remembered(store)

    def _remembered(self, store: Store) -> set[str]:
        if self._notes is None:
            name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
            self._notes = store.root / "remote" / f"{name}.shared"
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
            stored = self.fetch(key, store)
            if stored is not None or not (self.reads and self.writes):
                yield stored
                return
            mine = self._take_turn(key)
            if mine is not None:
                break
        with mine:
            yield self.fetch(key, store)  # whoever held it before may have ended just now

    def _take_turn(self, key: str) -> contextlib.AbstractContextManager[None] | None:
        try:
            return self._turns.take(key)
        except self._bucket.FAILURES as error:
            self._stop_reading(error)
            return None

    def _stop_reading(self, error: Exception) -> None:
        if self.reads:
            self.reads = False
            self._note(f"{self._name} does not answer ({describe(error)}): going on without it")

    @property
    def _name(self) -> str:
        return f"the shared store {self.url}"


def _action(key: str) -> str:
    return f"actions/{key}.json"


def _entries(record: Mapping[str, Json]) -> list[keys.FileEntry]:
    """The files that ``record`` lists.

    Raises:
        Unfit: they are not those that its digest is of.
    """
    entries = [keys.FileEntry(o["path"], int(o["size"]), o["sha256"]) for o in record["outputs"]]
    if keys.tree_digest(entries) != record["digest"]:
        raise Unfit("its list of files is not its own")
    return entries


def describe(error: Exception) -> str:
    """What went wrong, in one line, without anything that the environment keeps secret."""
    kind = type(error).__name__
    words = {
        "PermissionDeniedError": "permission denied",
        "UnauthenticatedError": "no valid credentials",
        "NotFoundError": "no such bucket",
    }
    if kind in words:
        return words[kind]
    if plain := _plainly(error):
        return plain
    text = re.sub(r"\s+", " ", str(error).partition("Debug source")[0]).strip()
    for name, value in os.environ.items():
        if value and SECRET.search(name):
            text = text.replace(value, "***")
    causes = re.findall(
        r"(?:client error|tcp connect error|dns error|[Cc]onnection refused|timed out)[^,:()]*",
        text,
    )
    return causes[-1].strip() if causes else (text[:200] or kind)


def _plainly(error: Exception) -> str:
    """What of obstore's failures users can set right; empty where it is another one."""
    from phipipe.store import bucket  # it is not there without obstore

    if bucket.lacks_credentials(error):
        return bucket.missing_credentials()
    url = bucket.nobody_there(error)
    return unanswered(url, is_known=bucket.is_known(error)) if url else ""

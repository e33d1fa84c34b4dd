"""Trees that are never copied: a user's checkpoint, read where it lies.

The record of such a result has ``place``, the user's folder, and no tree. Steps get a view of it: a
folder with the files that the record names and no others, small ones by copy, weights as symbolic
links, as the hub's own cache has them. Nobody keeps the user from writing to them meanwhile. So
content is hashed before it is read, and looked at again after each step that read it: whoever
changes it makes that step fail, and never an artifact under a wrong key.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.steps import Outside
from phipipe.store import claims, digests, files, keys, refusals
from phipipe.store.records import Stored

WEIGHTS = (".safetensors", ".gguf")  # what is worth a link
ABLE = os.name != "nt"  # there, links are a privilege
COPY = "or have it copied into the cache: PHIPIPE_SOURCES=copy"


class Lent:
    """Views of trees that lie outside the store in ``root``; they last as long as a session."""

    def __init__(self, root: Path) -> None:
        self._root, self._lock = root, threading.Lock()
        self._sessions: list[contextlib.ExitStack] = []
        self._views: dict[tuple[str, Path], Path] = {}

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """While this lasts, there can be views."""
        with contextlib.ExitStack() as stack:
            self._sessions.append(stack)
            try:
                yield
            finally:
                self._sessions.remove(stack)
                self._views.clear()

    def view(self, stored: Stored) -> Path:
        """A folder with the files of ``stored``, all of whose content has just been looked at.

        Raises:
            SourceError: it is not what it was when the run began.
        """
        check(stored, self._root)
        assert stored.place is not None
        with self._lock, refusals.guard(self._root):
            at = stored.digest, stored.place
            if at not in self._views:
                self._views[at] = self._made(stored, stored.place)
            return self._views[at]

    def _made(self, stored: Stored, place: Path) -> Path:
        # called by its digest, as in ``objects``: some converters write a folder's name down
        claimed = self._sessions[-1].enter_context(claims.claim(self._root / "tmp"))
        folder = claimed / stored.digest
        folder.mkdir()
        for output in stored.outputs:
            name = str(output["path"])
            if name in (stored.left or ()):
                files.copy(stored.path / name, folder / name)
            elif name.endswith(WEIGHTS):
                (folder / name).symlink_to((place / name).resolve())
            else:
                files.copy(place / name, folder / name)
                (folder / name).chmod(0o444)
        return folder


def whereabouts(place: Path, names: Sequence[str]) -> Path:
    """The checkpoint that consists of the files ``names`` of ``place``: a folder, or one GGUF."""
    return place / names[0] if len(names) == 1 and names[0].endswith(".gguf") else place


def check(stored: Stored, root: Path) -> None:
    """Whether the user's files are what ``stored`` says. What nothing has touched since this
    process read it is not read again. What the store in ``root`` remembers of changed ones is
    forgotten, whatever their times say.

    Raises:
        SourceError: one is gone, cannot be read, or was changed.
    """
    assert stored.place is not None
    wanted = {
        (stored.path if o["path"] in (stored.left or ()) else stored.place) / str(o["path"]): str(
            o["sha256"]
        )
        for o in stored.outputs
    }
    with ThreadPoolExecutor(keys.THREADS) as pool:
        for path, found in zip(wanted, pool.map(_content, wanted), strict=True):
            if found != wanted[path]:
                names = tuple(str(output["path"]) for output in stored.outputs)
                digests.forget(Outside(stored.place, names), root)
                raise SourceError(
                    f"`{path}` changed while it was read",
                    hint=f"run the same command again when nothing writes to it, {COPY}",
                )


def _content(path: Path) -> str:
    try:
        return digests.sure(path)
    except FileNotFoundError:
        raise SourceError(
            f"`{path}` is gone, and it is still needed", hint=f"put it back, {COPY}"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror}") from None

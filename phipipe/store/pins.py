"""What running builds need: ``pins/<session>/<digest>``, which no collection takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from phipipe.store import claims, refusals


class Pins:
    """The pins of the store in ``root``, and the sessions of this instance that hold some.

    ``locks_work``: whether it can be known that a session's process is dead.
    """

    def __init__(self, root: Path, locks_work: bool) -> None:
        self._root, self.locks_work = root, locks_work
        self._sessions: list[Path] = []

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """While this lasts, everything that is pinned stays; so it is until we die."""
        with contextlib.ExitStack() as stack:
            with refusals.guard(self._root):
                folder = stack.enter_context(claims.claim(self._root / "pins"))
            self._sessions.append(folder)
            try:
                yield
            finally:
                self._sessions.remove(folder)

    def any_session(self) -> contextlib.AbstractContextManager[None]:
        """A session, if there is none: between its tree and its record a result must not be
        collected."""
        return contextlib.nullcontext() if self._sessions else self.session()

    def pin(self, tree: Path) -> bool:
        """Pin a tree and say whether it is there, as one act with respect to collections."""
        with refusals.guard(self._root), claims.gate(self._root):
            self.touch(tree.name)
            return tree.is_dir()

    def touch(self, digest: str) -> None:
        """Pin a tree; the gate is held."""
        for folder in self._sessions:
            (folder / digest).touch()

    def others(self, digest: str) -> bool:
        """Whether another build needs a tree; the gate is held. Where nobody can be known to be
        dead, whoever was there once counts."""
        self.sweep()
        own = {*self._sessions}
        return any(
            (session / digest).exists()
            for session in (self._root / "pins").iterdir()
            if session.is_dir() and session not in own
        )

    def digests(self) -> set[str]:
        """Trees that running builds need. A build that ends just now needs none."""
        self.sweep()
        pinned: set[str] = set()
        for session in (self._root / "pins").iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                pinned |= {pin.name for pin in session.iterdir()}
        return pinned

    def sweep(self) -> None:
        """Remove the pins of processes that are dead."""
        if self.locks_work:
            claims.sweep(self._root / "pins")

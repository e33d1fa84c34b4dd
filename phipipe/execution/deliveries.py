"""Packages on their way out of the store, a few at a time.

Of several builds with one package, each gets its own: one after another, and the last may be given
the store's files.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from phipipe.errors import PhipipeError
from phipipe.evaluate import papers
from phipipe.execution.aside import Aside
from phipipe.execution.keeping import Keeping
from phipipe.execution.results import Result
from phipipe.recipe.build import Build
from phipipe.signing.recipe_key import Finish
from phipipe.store.exports import Extra
from phipipe.store.records import Stored
from phipipe.store.store import Store

AT_ONCE = 4  # more would only wait for the disk


class Deliveries:
    """Used from the run's own thread alone; copies are made aside."""

    def __init__(self, keeping: Keeping, aside: Aside) -> None:
        self._store, self._aside, self._move = keeping.store, aside, not keeping.keep_all
        self._waiting: deque[tuple[str, Callable[[bool], None]]] = deque()
        self._copying: set[str] = set()  # digests
        self._under_way: set[int] = set()  # builds, also those that wait
        self.damaged: Counter[int] = Counter()  # build → how often its package was found damaged

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def __contains__(self, build: int) -> bool:
        return build in self._under_way

    def add(
        self,
        build: int,
        what: Build,
        package: Result,
        target: Path,
        then: Callable[[int, Path, bool | PhipipeError], None],
    ) -> None:
        """Copy the ``package`` of ``build`` to ``target`` when its turn comes, signed as the recipe
        of ``what`` it is wants it; ``then`` hears of the end."""
        self._under_way.add(build)
        digest = package.stored.digest

        def end(result: bool | PhipipeError) -> None:
            self._copying.discard(digest)
            self._under_way.discard(build)
            then(build, target, result)

        finish = Finish(what) if what.recipe.package.sign else None

        def start(move: bool) -> None:
            copy = partial(_deliver, self._store, package.stored, target, finish, move)
            self._aside.start(copy, end)

        self._waiting.append((digest, start))

    def start(self) -> None:
        """Start what may be started."""
        held = deque[tuple[str, Callable[[bool], None]]]()
        while self._waiting and len(self._copying) < AT_ONCE:
            digest, start = self._waiting.popleft()
            if digest in self._copying:
                held.append((digest, start))
                continue
            is_last = all(digest != other for other, _ in (*self._waiting, *held))
            self._copying.add(digest)
            start(self._move and is_last)
        self._waiting.extendleft(reversed(held))


def _deliver(store: Store, stored: Stored, target: Path, finish: Finish | None, move: bool) -> bool:
    """Whether ``target`` had to be written. A signature of the same content stays, whoever made
    it, unless ``finish`` makes another."""
    digests = {str(output["path"]): str(output["sha256"]) for output in stored.outputs}

    def complete(folder: Path) -> None:
        if finish is not None:
            finish(folder, True, digests)

    beside = (papers.SIGNATURE,)
    extra = Extra(beside=beside, finish=complete)
    changed = store.materialise(stored, target, extra, move=move)
    if finish is not None and not changed:
        finish(target, False, digests)
    return changed

"""Packages on their way out of the store, a few at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from phipipe.errors import PhipipeError
from phipipe.evaluate import papers
from phipipe.execution.aside import Aside
from phipipe.execution.results import Result
from phipipe.recipe.build import Build
from phipipe.signing.recipe_key import Finish
from phipipe.store.exports import Extra
from phipipe.store.store import Store

AT_ONCE = 4  # more would only wait for the disk


@dataclass(frozen=True)
class Delivery:
    """The ``package`` of a build on its way to ``target``, signed as the recipe of ``what`` it is
    wants it. ``move``: no copy stays in the store."""

    what: Build
    package: Result
    target: Path
    move: bool

    @property
    def digest(self) -> str:
        """Of what is delivered."""
        return self.package.stored.digest


class Deliveries:
    """Used from the run's own thread alone; copies are made aside. Of several builds with the same
    package the last takes it away, where it does not stay."""

    def __init__(self, store: Store, aside: Aside) -> None:
        self._store, self._aside = store, aside
        self._waiting: deque[tuple[Delivery, Callable[[bool | PhipipeError], None]]] = deque()
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
        delivery: Delivery,
        then: Callable[[int, Path, bool | PhipipeError], None],
    ) -> None:
        """Make the ``delivery`` of ``build`` when its turn comes; ``then`` hears of the end."""
        self._under_way.add(build)

        def end(result: bool | PhipipeError) -> None:
            self._copying.discard(delivery.digest)
            self._under_way.discard(build)
            then(build, delivery.target, result)

        self._waiting.append((delivery, end))

    def start(self) -> None:
        """Start what may be started."""
        held = deque[tuple[Delivery, Callable[[bool | PhipipeError], None]]]()
        while self._waiting and len(self._copying) < AT_ONCE:
            delivery, end = self._waiting.popleft()
            if delivery.digest in self._copying:
                held.append((delivery, end))
                continue
            others = (other.digest for other, _ in (*self._waiting, *held))
            is_last = delivery.digest not in others
            made = replace(delivery, move=delivery.move and is_last)
            self._copying.add(delivery.digest)
            self._aside.start(partial(_deliver, self._store, made), end)
        self._waiting.extendleft(reversed(held))


def _deliver(store: Store, delivery: Delivery) -> bool:
    """Whether the target had to be written. A signature of the same content stays, whoever made
    it, unless the recipe wants another."""
    stored, target = delivery.package.stored, delivery.target
    finish = Finish(delivery.what) if delivery.what.recipe.package.sign else None
    digests = {str(output["path"]): str(output["sha256"]) for output in stored.outputs}

    def complete(folder: Path) -> None:
        if finish is not None:
            finish(folder, True, digests)

    beside = (papers.SIGNATURE,)
    extra = Extra(beside=beside, finish=complete)
    changed = store.materialise(stored, target, extra, move=delivery.move)
    if finish is not None and not changed:
        finish(target, False, digests)
    return changed

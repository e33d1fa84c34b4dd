"""Steps on other machines: the client's side of ``--on dask://HOST``.

Dask carries strings alone: a step's description there, its key and digest back. Data goes through
the shared store (``store.shared``), so a worker that is lost costs its step, and a scheduler that
is lost costs nothing that had finished. A step that reads this machine's files, or needs no
toolchain, is done here; all others where they can be: workers advertise toolchains, memory and what
they are as Dask's resources.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from phipipe import progress
from phipipe.cluster import dask, worker
from phipipe.cluster.scheduler import Scheduler
from phipipe.errors import PhipipeError, RecipeError, StoreError, decoded
from phipipe.execution.bench import Bench
from phipipe.execution.results import Result, Results, Waiting
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.records import Damaged, Stored
from phipipe.store.store import Store

UNSHARED = "steps on other machines need a store that all share"
SHARE = "set PHIPIPE_REMOTE, here and for the workers"
ARRIVAL_S = 10.0  # in which workers find a scheduler that has just started again
SMALL_BYTES = 4 * 2**20  # results up to this size are brought here at once: figures, reports


def machines(url: str, say: Callable[[str], None]) -> frozenset[str]:
    """Kinds of machines (``hardware.kinds``) that the workers of the scheduler at ``url`` are, and
    ``device NAME``.

    Where there are none yet, they are waited for, for a while: what is planned without them is
    measured nowhere.

    Raises:
        RecipeError, ToolchainError: as ``Cluster``.
    """
    where = dask.address(url)
    scheduler, end = Scheduler(where), time.monotonic() + ARRIVAL_S
    try:
        offers = scheduler.offers()
        if not offers:
            say(
                f"the scheduler at {where} has no workers yet; waiting {ARRIVAL_S:g} s for the "
                f"first"
            )
        while not offers and time.monotonic() < end:
            time.sleep(0.1)
            offers = scheduler.offers()
    finally:
        scheduler.close()
    labels = {label for offered in offers for label in offered}
    return frozenset(
        label.removeprefix("machine ")
        for label in labels
        if label.startswith(("machine ", "device "))
    )


def is_here(step: Step) -> bool:
    """Whether ``step`` is done on the machine that asks: it reads its files, or needs no
    toolchain."""
    return step.toolchain is None or bool(step.outside) or step.folder is not None


def engine(url: str) -> Callable[[Store, Settings, Callable[[str], None], int | None], Cluster]:
    """What makes the ``Bench`` of a run on the cluster at ``url``; asks nothing yet."""
    return partial(Cluster, dask.address(url))


class Cluster:
    """Where steps are done: here, on a bench, or on the workers of the scheduler at ``where``.

    Raises:
        RecipeError: nothing is shared, or certificates are missing.
        ToolchainError: the scheduler does not answer, or its workers have another phipipe.
    """

    def __init__(
        self,
        where: str,
        store: Store,
        settings: Settings,
        note: Callable[[str], None],
        threads: int | None,
    ) -> None:
        self._bench = Bench(store, settings, note, threads)
        if self._bench.shared is None:
            raise RecipeError(
                UNSHARED,
                hint=SHARE,
            )
        self._store, self._shared, self._where = store, self._bench.shared, where
        self._scheduler = Scheduler(where)
        self._there: set[str] = set()  # keys of results that are known to be shared
        self._sharing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def here(self, step: Step) -> bool:
        """As ``is_here``."""
        return is_here(step)

    def lacks(self, step: Step) -> str | None:
        """Of what is done here, the toolchain that is still to be installed."""
        return self._bench.lacks(step) if self.here(step) else None

    def prepare(self, name: str) -> None:
        """As ``Bench``."""
        self._bench.prepare(name)

    def dismiss(self, keep: set[str]) -> None:
        """As ``Bench``."""
        self._bench.dismiss(keep)

    def stop(self, force: bool = False) -> None:
        """As ``Bench``; nobody waits for workers any more."""
        self._scheduler.stopped = True
        self._bench.stop(force)

    def close(self) -> None:
        """No more steps will come."""
        self._bench.close()
        self._scheduler.close()

    def look(self, step: Step, inputs: Results, before: Results) -> Result | Waiting:
        """As ``Bench``; whether a worker has the result is the worker's to find out."""
        if self.here(step):
            return self._bench.look(step, inputs, before)
        return Waiting(step=step, key="", record={}, why=f"on {self._where}")

    def make(self, waiting: Waiting, inputs: Results, on_progress: OnProgress) -> Result:
        """As ``Bench``; a step that can run nowhere fails at once.

        Raises:
            Damaged: an input is gone from the shared store.
            PhipipeError: the step's own failure, or its workers'.
        """
        step, is_here = waiting.step, self.here(waiting.step)
        with progress.listening(on_progress):
            for result in inputs.values():
                (self._bring if is_here else self._share)(result)
        if is_here:
            return self._bench.make(waiting, inputs, on_progress)
        keys = {name: result.key for name, result in inputs.items()}
        answer = json.loads(self._scheduler.do(step, keys, on_progress))
        if "error" in answer:
            raise self._error(answer["error"], inputs)
        key = answer["key"]
        self._there.add(key)
        about = {name: answer[name] for name in ("cached", "usage", "machine")}
        return Result(step=step, key=key, stored=self._described(key), **about)

    def _bring(self, result: Result) -> None:
        """Have the content of ``result`` here."""
        if (
            self._store.peek(result.key) is None
            and self._shared.fetch(result.key, self._store, anew=True) is None
        ):
            raise Damaged(
                f"the result {result.key[:12]} is gone from the shared store", result.stored.digest
            )

    def _described(self, key: str) -> Stored:
        """What a worker shared as ``key``: small things are brought here, of others this is a
        description."""
        known = self._store.lookup(key)
        if known:
            return known
        record = self._shared.record(key)
        if record is None:
            raise StoreError(
                f"a worker says that it made {key[:12]}, but {self._shared.url} does not have it"
            )
        stored = Stored(
            key,
            record["digest"],
            self._store.root / "objects" / record["digest"],
            tuple(record["outputs"]),
        )
        if stored.size_bytes > SMALL_BYTES:
            return stored
        return self._shared.fetch(key, self._store, anew=True) or stored

    def _share(self, result: Result) -> None:
        """Have the content of ``result`` where workers find it; what they made themselves is
        there."""
        with self._sharing[result.key]:
            if result.key not in self._there and (stored := self._store.peek(result.key)):
                self._shared.offer(stored, self._store)
                if not self._shared.writes:
                    raise StoreError(
                        f"{self._shared.url} takes no results", hint="check its permissions"
                    )
            self._there.add(result.key)

    def _error(self, described: object, inputs: Results) -> PhipipeError:
        """What a worker says went wrong; what is lost or damaged there, whoever made it makes
        again."""
        error = decoded(described)
        if isinstance(error, worker.Missing) and (lost := inputs.get(error.name)):
            self._there.discard(lost.key)
            return Damaged(
                f"the result {lost.key[:12]} is gone from the shared store", lost.stored.digest
            )
        return error

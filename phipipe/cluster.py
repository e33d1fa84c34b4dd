"""Steps on other machines: the client's side of ``--on dask://HOST``.

Dask carries strings alone: a step's description there, its key and digest back. Data goes through
the shared store (``remote_store``), so a worker that is lost costs its step, and a scheduler that
is lost costs nothing that had finished. A step that reads this machine's files, or needs no
toolchain, is done here; all others where they can be: workers advertise toolchains, memory and what
they are as Dask's resources.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from phipipe import __version__, cluster_worker, progress
from phipipe.backends.base import Step
from phipipe.errors import (
    Interrupted,
    PhipipeError,
    RecipeError,
    StepKilled,
    StoreError,
    TargetError,
    ToolchainError,
    decoded,
)
from phipipe.executor import Bench, Result, Results, Waiting
from phipipe.records import Damaged, Stored
from phipipe.report import counted
from phipipe.settings import Settings
from phipipe.store import Store

LOOK_S = 2.0
ARRIVAL_S = 10.0  # in which workers find a scheduler that has just started again
GRACE_S = 60.0  # that a worker who was lost has to come back
LOST_WORKERS = 3  # a step may lose its worker this often before we think that it is the step
AGAIN = "start it again, then run the same command: what had finished is kept"
SMALL_BYTES = 4 * 2**20  # results up to this size are brought here at once: figures, reports


def connect(where: str) -> Any:
    """Dask's client of the scheduler ``where``."""
    distributed = cluster_worker.imported()
    keys = cluster_worker.security(where, "client")
    try:
        client = distributed.Client(
            where, security=keys, timeout=cluster_worker.CONNECT_S, set_as_default=False
        )
    except (OSError, TimeoutError) as error:
        raise cluster_worker.unreachable(where, error) from None
    found = client.get_versions()["scheduler"]["packages"].get("distributed")
    if found != distributed.__version__:
        client.close()
        raise ToolchainError(
            f"the scheduler has Dask {found}, we have {distributed.__version__}",
            hint="install the same version",
        )
    return client


def machines(url: str, say: Callable[[str], None]) -> frozenset[str]:
    """Kinds of machines (``hardware.kinds``) that the workers of the scheduler at ``url`` are, and
    ``device NAME``.

    Where there are none yet, they are waited for, for a while: what is planned without them is
    measured nowhere.

    Raises:
        RecipeError, ToolchainError: as ``Cluster``.
    """
    where = cluster_worker.address(url)
    client, end = connect(where), time.monotonic() + ARRIVAL_S
    try:
        if not (offers := _offers(client, where)):
            say(
                f"the scheduler at {where} has no workers yet; waiting {ARRIVAL_S:g} s for the "
                f"first"
            )
        while not offers and time.monotonic() < end:
            time.sleep(0.1)
            offers = _offers(client, where)
        labels = {label for offered in offers for label in offered}
    finally:
        client.close()
    return frozenset(
        label.removeprefix("machine ")
        for label in labels
        if label.startswith(("machine ", "device "))
    )


def _offers(client: Any, where: str) -> list[dict[str, float]]:
    """What each worker advertises.

    Raises:
        ToolchainError: the scheduler is gone.
    """
    end = time.monotonic() + cluster_worker.CONNECT_S
    while (
        found := client.scheduler_info(n_workers=-1).get("workers")
    ) is None:  # Dask tries to connect again
        if not _lives(client) or time.monotonic() > end:
            raise _gone(where)
        time.sleep(0.1)
    return [worker["resources"] for worker in found.values()]


def _lives(client: Any) -> bool:
    return client.status in ("running", "connecting")


def _gone(where: str) -> ToolchainError:
    return ToolchainError(f"the scheduler at `{where}` is gone", hint=AGAIN)


def engine(url: str) -> Callable[[Store, Settings, Callable[[str], None], int | None], Cluster]:
    """What makes the ``Bench`` of a run on the cluster at ``url``; asks nothing yet."""
    return partial(Cluster, cluster_worker.address(url))


class Cluster(Bench):
    """Where steps are done: here, or on the workers of the scheduler at ``where``.

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
        super().__init__(store, settings, note, threads)
        if self._remote is None:
            raise RecipeError(
                "steps on other machines need a store that all share",
                hint="set PHIPIPE_REMOTE, here and for the workers",
            )
        self._shared, self._where = self._remote, where
        self._seen: set[str] = set()  # toolchains that some worker had
        self._there: set[str] = set()  # keys of results that are known to be shared
        self._sharing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._client, self._topic = connect(where), f"phipipe-{os.urandom(8).hex()}"
        self._heard: dict[
            str, Callable[[int, int, str], None]
        ] = {}  # task → who wants to know how far it is
        self._client.subscribe_topic(self._topic, self._hear)

    def here(self, step: Step) -> bool:
        return step.toolchain is None or bool(step.outside) or step.folder is not None

    def lacks(self, step: Step) -> str | None:
        return super().lacks(step) if self.here(step) else None

    def look(self, step: Step, inputs: Results, before: Results) -> Result | Waiting:
        if self.here(step):
            return super().look(step, inputs, before)
        return Waiting(step=step, key="", record={}, why=f"on {self._where}")

    def make(
        self, waiting: Waiting, inputs: Results, on_progress: Callable[[int, int, str], None]
    ) -> Result:
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
            return super().make(waiting, inputs, on_progress)
        keys = {name: result.key for name, result in inputs.items()}
        told = json.loads(self._done_by_worker(step, keys, on_progress))
        if "error" in told:
            raise self._error(told["error"], inputs)
        key = told["key"]
        self._there.add(key)
        about = {name: told[name] for name in ("cached", "usage", "machine")}
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
        found = self._store.lookup(key)
        record = None if found else self._shared.record(key)
        if found is None and record is None:
            raise StoreError(
                f"a worker says that it made {key[:12]}, but {self._shared.url} does not have it"
            )
        if record is None:
            assert found is not None
            return found
        stored = Stored(
            key,
            record["digest"],
            self._store.root / "objects" / record["digest"],
            tuple(record["outputs"]),
        )
        if stored.size_bytes > SMALL_BYTES:
            return stored
        return self._shared.fetch(key, self._store, anew=True) or stored

    def _record_of(self, result: Result) -> Mapping[str, Any]:
        record = self._shared.record(result.key) if self._store.peek(result.key) is None else None
        return record or super()._record_of(result)

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

    def _error(self, told: object, inputs: Results) -> PhipipeError:
        """What a worker says went wrong; what is lost or damaged there, whoever made it makes
        again."""
        error = decoded(told)
        if isinstance(error, cluster_worker.Missing) and (lost := inputs.get(error.name)):
            self._there.discard(lost.key)
            return Damaged(
                f"the result {lost.key[:12]} is gone from the shared store", lost.stored.digest
            )
        return error

    # Where

    def _hear(self, event: tuple[float, Sequence[Any]]) -> None:
        task, *report = event[1]
        if heard := self._heard.get(task):
            heard(*report)

    def _done_by_worker(
        self, step: Step, inputs: Mapping[str, str], on_progress: Callable[[int, int, str], None]
    ) -> str:
        distributed, turn = cluster_worker.imported(), 0
        task = (
            f"{step.name}-{os.urandom(8).hex()}"  # Dask shows it, and claims are made in its name
        )
        about = {"phipipe": __version__, "task": task, "topic": self._topic, "inputs": inputs}
        payload = json.dumps(about | {"step": cluster_worker.described(step)})
        self._heard[task] = on_progress
        try:
            while True:
                wanted, turn = self._placed(step), turn + 1
                key = f"{task}-{turn}"
                future = self._client.submit(
                    cluster_worker.work, payload, resources=wanted, retries=0, key=key
                )
                try:
                    if (told := self._waited_for(future, step, wanted)) is not None:
                        return told
                finally:
                    future.release()
        except distributed.KilledWorker:
            raise StepKilled(
                f"step `{step.name}`: {LOST_WORKERS + 1} workers were lost while they did it",
                hint="their logs say why; often memory",
            ) from None
        except (
            distributed.CancelledError,
            distributed.comm.CommClosedError,
            distributed.client.ClosedClientError,
        ):
            raise _gone(self._where) from None
        finally:
            del self._heard[task]

    def _waited_for(self, future: Any, step: Step, wanted: Mapping[str, float]) -> str | None:
        """What a worker answers; None: those that were asked are gone, and others would do."""
        while True:
            try:
                return str(future.result(timeout=LOOK_S))
            except TimeoutError:
                if future.status == "error":  # the worker's own: a bug there
                    raise
                if self._stopped:
                    raise Interrupted("stopped") from None
                if not _lives(self._client):
                    raise _gone(self._where) from None
                offers = _offers(self._client, self._where)
                if not _fitting(wanted, offers) and self._placed(step) != wanted:
                    return None

    def _placed(self, step: Step) -> dict[str, float]:
        """``needs``; where a worker that was there before is gone, another is waited for, for a
        while.

        Raises:
            TargetError: nobody comes.
        """
        end = time.monotonic() + GRACE_S
        while True:
            try:
                wanted = needs(step, _offers(self._client, self._where), self._where)
            except TargetError:
                if step.toolchain not in self._seen or time.monotonic() > end or self._stopped:
                    raise
                time.sleep(LOOK_S)
            else:
                self._seen.add(str(step.toolchain))
                return wanted

    def close(self) -> None:
        super().close()
        self._client.close()


def _fitting(
    wanted: Mapping[str, float], offers: Sequence[Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """The workers that have all that is wanted."""
    return [
        worker
        for worker in offers
        if all(worker.get(name, 0) >= value for name, value in wanted.items())
    ]


def needs(step: Step, offers: Sequence[Mapping[str, float]], where: str) -> dict[str, float]:
    """The resources that ``step`` needs, of workers that offer ``offers`` at ``where``.

    Of several kinds of machines that may measure, it is always the same one that does: figures of
    one board compare, and the next run finds them.

    Raises:
        TargetError: no worker has them; says what is missing.
    """
    wanted = dict.fromkeys([f"toolchain {step.toolchain}", *step.machine], 1.0)
    if step.memory_bytes:
        wanted["memory_gib"] = round(step.memory_bytes / 2**30, 3)
    fitting = _fitting(wanted, offers)
    if not fitting:
        lacking = [
            name for name, value in wanted.items() if not _fitting({name: value}, offers)
        ] or [*wanted]
        words = " and ".join(
            f"{wanted[n]:g} GiB of memory" if n == "memory_gib" else n for n in lacking
        )
        raise TargetError(
            f"step `{step.name}` can run on none of {counted(len(offers), 'worker')}: it needs "
            f"{words}",
            hint=f"start one that has it: phipipe worker --scheduler "
            f"{cluster_worker.PREFIX}{where.partition('://')[2]}",
        )
    hosts = [
        label for worker in fitting for label in worker if label.startswith(cluster_worker.HOST)
    ]
    return wanted | ({min(hosts): 1.0} if step.measurement and hosts else {})

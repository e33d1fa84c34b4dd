"""A connection to Dask's scheduler, and the work that its workers do for us."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phipipe import __version__
from phipipe.cluster import dask
from phipipe.cluster import worker as cluster_worker
from phipipe.cluster.placement import fitting, needs
from phipipe.errors import Interrupted, StepKilled, TargetError, ToolchainError
from phipipe.progress import OnProgress
from phipipe.steps import Step

LOOK_S = 2.0
GRACE_S = 60.0  # that a worker who was lost has to come back
LOST_WORKERS = 3  # a step may lose its worker this often before we think that it is the step
AGAIN = "start it again, then run the same command: what had finished is kept"


class Scheduler:
    """The scheduler at ``where``. ``do`` may be called from several threads.

    Raises:
        RecipeError: certificates are missing.
        ToolchainError: it does not answer, or has another version of Dask.
    """

    def __init__(self, where: str) -> None:
        self._where, self._client = where, _connect(where)
        self._topic = f"phipipe-{os.urandom(8).hex()}"
        self._seen: set[str] = set()  # toolchains that some worker had
        self._heard: dict[str, OnProgress] = {}  # task → who wants to know how far it is
        self.stopped = False  # nobody waits for workers any more
        self._client.subscribe_topic(self._topic, self._hear)

    def close(self) -> None:
        """Let it go."""
        self._client.close()

    def offers(self) -> list[dict[str, float]]:
        """What each worker advertises; raises as ``workers``."""
        return list(self.workers().values())

    def workers(self) -> dict[str, dict[str, float]]:
        """Name of each worker → what it advertises.

        Raises:
            ToolchainError: the scheduler is gone.
        """
        end = time.monotonic() + dask.CONNECT_S
        while True:
            workers = self._client.scheduler_info(n_workers=-1).get("workers")
            if workers is not None:
                return {
                    _shown(address, worker): worker["resources"]
                    for address, worker in workers.items()
                }
            if not self._lives() or time.monotonic() > end:  # Dask tries to connect again
                raise self._gone()
            time.sleep(0.1)

    def do(self, step: Step, inputs: Mapping[str, str], on_progress: OnProgress) -> str:
        """Have a worker do ``step``, whose ``inputs`` are keys; its answer, see
        ``worker.work``.

        Raises:
            TargetError: no worker can.
            StepKilled: several were lost while they did it.
            Interrupted: we were stopped.
            ToolchainError: the scheduler is gone.
        """
        # Dask shows it, and claims are made in its name
        task = f"{step.name}-{os.urandom(8).hex()}"
        about = {"phipipe": __version__, "task": task, "topic": self._topic, "inputs": inputs}
        payload = json.dumps(about | {"step": cluster_worker.described(step)})
        self._heard[task] = on_progress
        answer, turn = None, 0
        try:
            with self._losses_in_words(step):
                while answer is None:
                    turn += 1
                    answer = self._submit(payload, step, f"{task}-{turn}")
        finally:
            del self._heard[task]
        return answer

    def _submit(self, payload: str, step: Step, key: str) -> str | None:
        wanted = self._place(step)
        future = self._client.submit(
            cluster_worker.work, payload, resources=wanted, retries=0, key=key
        )
        try:
            return self._wait_for(future, step, wanted)
        finally:
            future.release()

    def _wait_for(self, future: Any, step: Step, wanted: Mapping[str, float]) -> str | None:
        """What a worker answers; None: those that were asked are gone, and others would do."""
        while True:
            try:
                return str(future.result(timeout=LOOK_S))
            except TimeoutError:
                if future.status == "error":  # the worker's own: a bug there
                    raise
                if self.stopped:
                    raise Interrupted("stopped") from None
                if not self._lives():
                    raise self._gone() from None
                if not fitting(wanted, self.offers()) and self._place(step) != wanted:
                    return None

    def _place(self, step: Step) -> dict[str, float]:
        """``needs``; where a worker that was there before is gone, another is waited for, for a
        while.

        Raises:
            TargetError: nobody comes.
        """
        end = time.monotonic() + GRACE_S
        while True:
            try:
                wanted = needs(step, self.offers(), self._where)
            except TargetError:
                if step.toolchain not in self._seen or time.monotonic() > end or self.stopped:
                    raise
                time.sleep(LOOK_S)
            else:
                self._seen.add(str(step.toolchain))
                return wanted

    @contextlib.contextmanager
    def _losses_in_words(self, step: Step) -> Iterator[None]:
        distributed = dask.imported()
        lost = (
            distributed.CancelledError,
            distributed.comm.CommClosedError,
            distributed.client.ClosedClientError,
        )
        try:
            yield
        except distributed.KilledWorker:
            raise StepKilled(
                f"step `{step.name}`: {LOST_WORKERS + 1} workers were lost while they did it",
                hint="their logs say why; often memory",
            ) from None
        except lost:
            raise self._gone() from None

    def _hear(self, event: tuple[float, Sequence[Any]]) -> None:
        task, *report = event[1]
        if heard := self._heard.get(task):
            heard(*report)

    def _lives(self) -> bool:
        return self._client.status in ("running", "connecting")

    def _gone(self) -> ToolchainError:
        return ToolchainError(f"the scheduler at `{self._where}` is gone", hint=AGAIN)


def _shown(address: str, worker: Mapping[str, Any]) -> str:
    """A worker's address, after its name where it has one."""
    name, place = str(worker.get("name", address)), address.partition("://")[2]
    return place if name == address else f"{name} ({place})"


def _connect(where: str) -> Any:
    """Dask's client."""
    distributed = dask.imported()
    keys = dask.security(where, "client")
    try:
        client = distributed.Client(
            where, security=keys, timeout=dask.CONNECT_S, set_as_default=False
        )
    except (OSError, TimeoutError) as error:
        raise dask.unreachable(where, error) from None
    theirs = client.get_versions()["scheduler"]["packages"].get("distributed")
    if theirs != distributed.__version__:
        client.close()
        raise ToolchainError(
            f"the scheduler has Dask {theirs}, we have {distributed.__version__}",
            hint="install the same version",
        )
    return client

"""Steps of other machines: a Dask worker that does them with its own toolchains, from and to the
shared store.

A step comes as a string, its inputs as keys. The worker computes the step's key itself, so it
counts what is really installed here, and a measurement's key names this machine.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from phipipe import __version__, progress
from phipipe.cluster import dask
from phipipe.cluster.resources import HOST
from phipipe.errors import PhipipeError, RecipeError, StoreError, ToolchainError, encoded
from phipipe.execution.bench import Bench
from phipipe.execution.results import Result, Waiting
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.shared import SharedStore
from phipipe.store.store import Store
from phipipe.store.turns import OWNER
from phipipe.visible import visible

# between attempts to find the next scheduler, and for one: Dask's own get rarer
RETRY_S, RETRIED_S = 2.0, 5.0
PROGRESS_S = 1.0

_LOOKING = threading.Lock()  # a bench looks up one step at a time
_TURNS, _GOING, _DUE = threading.Condition(), list[bool](), list[bool]()  # True: a measurement


class Missing(StoreError):
    """An input, which a step knows as ``name``, is not in the shared store."""

    DETAILS = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the input `{name}` is not in the shared store", hint="run the same command again"
        )
        self.name = name


def described(step: Step) -> dict[str, Any]:
    """What of ``step`` decides its key, and what a worker has to know besides."""
    return {
        "name": step.name,
        "runs": step.runs,
        "version": step.version,
        "params": dict(step.params),
        "needs": dict(step.needs),
        "toolchain": step.toolchain,
        "measurement": step.measurement,
        "fresh": step.fresh,
        "memory_bytes": step.memory_bytes,
        "recipe": step.recipe,
    }


def work(payload: str) -> str:
    """Do a step: JSON of task, topic, ``described``, inputs' keys → JSON of its key, or of its
    failure."""
    order = json.loads(payload)
    try:
        if order["phipipe"] != __version__:
            raise ToolchainError(
                f"this phipipe is {order['phipipe']}, a worker's is {__version__}",
                hint="install the same version",
            )
        # whoever did it before is lost: the scheduler does not give a task to two
        OWNER.set(order["task"])
        step = Step(**order["step"])
        _prepare(step)
        with _turn(step.measurement):
            return json.dumps(_work(step, order["inputs"], _teller(order["topic"], order["task"])))
    except PhipipeError as error:
        return json.dumps({"error": encoded(error)})


def _teller(topic: str, task: str) -> OnProgress:
    """What tells the client, once a second, how far ``task`` is."""
    last = 0.0

    def tell(done: int, total: int, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            dask.imported().get_worker().log_event(topic, [task, done, total, unit])

    return tell


@contextmanager
def _turn(measurement: bool) -> Iterator[None]:
    """While this lasts, a measurement has this worker for itself. What comes later waits for one
    that waits."""
    with _TURNS:
        if measurement:
            _DUE.append(True)
            _TURNS.wait_for(lambda: not _GOING)
            _DUE.pop()
        else:
            _TURNS.wait_for(lambda: not (_DUE or any(_GOING)))
        _GOING.append(measurement)
    try:
        yield
    finally:
        with _TURNS:
            _GOING.remove(measurement)
            _TURNS.notify_all()


def _prepare(step: Step) -> None:
    """Have the toolchain of ``step`` before its turn comes. Others go on meanwhile, but no
    measurement does."""
    _, bench, _ = _place(Settings.read())
    if name := bench.lacks(step):
        with _turn(measurement=False):
            bench.prepare(name)


def _work(step: Step, keys: dict[str, str], on_progress: OnProgress) -> dict[str, Any]:
    store, bench, shared = _place(Settings.read())
    shared.again()
    with _LOOKING:
        bench.dismiss(keep={str(step.toolchain)})
    with store.session(), progress.listening(on_progress):
        inputs = {name: _input(name, key, store, shared) for name, key in keys.items()}
        with _LOOKING:
            result = bench.look(step, inputs, {})
        if isinstance(result, Waiting):
            _say(f"{step.name} {result.key[:12]} starts")
            result = bench.make(result, inputs, on_progress)
            _say(f"{step.name} {result.key[:12]} {'was there' if result.cached else 'done'}")
        else:
            shared.offer(result.stored, store)  # it may be gone from there
    if not shared.writes:
        raise StoreError(
            f"a worker cannot share what it makes: `{shared.url}` does not take it",
            hint="see its log",
        )
    return {
        "key": result.key,
        "cached": result.cached,
        "usage": dict(result.usage),
        "machine": platform.node(),
    }


@cache
def _place(settings: Settings) -> tuple[Store, Bench, SharedStore]:
    """Where this process does its steps; toolchains stay warm from one to the next.

    Raises:
        RecipeError: nothing is shared.
    """
    store = Store(settings.cache, notify=_say)
    bench = Bench(store, settings, _say)
    if bench.shared is None:
        raise RecipeError(
            "a worker has no PHIPIPE_REMOTE", hint="set it as where the run was started"
        )
    return store, bench, bench.shared


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


def _input(name: str, key: str, store: Store, shared: SharedStore) -> Result:
    stored = store.lookup(key) or shared.fetch(key, store, anew=True)
    if stored is None:
        raise Missing(name)
    step = Step(name=name, runs="", version=0)
    return Result(step=step, key=key, stored=stored, cached=True)


def serve(
    url: str,
    settings: Settings,
    jobs: int,
    offered: Mapping[str, float],
    say: Callable[[str], None],
) -> None:
    """Work for the scheduler at ``url`` (``dask://HOST:PORT``), and for those that follow it there,
    until we are ended.

    ``offered``: ``resources.resources``.

    Raises:
        RecipeError: nothing is shared, or certificates are missing.
        ToolchainError: no scheduler answers.
    """
    where = dask.address(url)
    keys = dask.security(where, "worker")
    _place(settings)
    options: dict[str, Any] = {
        "nthreads": jobs,
        "resources": dict(offered),
        "memory_limit": 0,
        "dashboard": False,
    }
    loopback = dask.is_loopback(where.partition("://")[2].rpartition(":")[0])
    options |= ({"host": "127.0.0.1"} if loopback else {}) | ({"security": keys} if keys else {})
    asyncio.run(_serve(where, settings, options, say))


async def _serve(
    where: str, settings: Settings, options: dict[str, Any], say: Callable[[str], None]
) -> None:
    folder = settings.cache / "dask"
    folder.mkdir(parents=True, exist_ok=True)
    offered = {**options["resources"]}
    memory = f"{offered.pop('memory_gib'):g} GiB of memory"
    labels = sorted(label for label in offered if not label.startswith(HOST))
    if (wrong := await _tried(where, options.get("security"), dask.CONNECT_S)) is not None:
        raise dask.unreachable(where, wrong)
    while True:
        async with dask.imported().Worker(where, local_directory=str(folder), **options) as worker:
            say(f"working for {where} as {worker.address}: {', '.join([memory, *labels])}")
            await worker.finished()
        say(f"the scheduler at {where} is gone; working on as soon as it is back")
        while await _tried(where, options.get("security"), RETRIED_S) is not None:
            await asyncio.sleep(RETRY_S)


async def _tried(where: str, keys: Any, timeout_s: float) -> Exception | None:
    """What goes wrong when the scheduler is spoken to; None if nothing does. A worker of Dask's
    would not say it."""
    try:
        comm = await dask.imported().comm.connect(
            where, timeout_s, **(keys.get_connection_args("worker") if keys else {})
        )
    except (OSError, TimeoutError) as error:
        return error
    await comm.close()
    return None

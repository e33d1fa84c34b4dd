"""Steps of other machines: a Dask worker that does them with its own toolchains, from and to the
shared store.

A step comes as a string, its inputs as keys. The worker computes the step's key itself, so it
counts what is really installed here, and a measurement's key names this machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import __version__, measure, progress, toolchain
from phipipe.backends.base import Step
from phipipe.errors import (
    PhipipeError,
    RecipeError,
    StoreError,
    TargetError,
    ToolchainError,
    encoded,
)
from phipipe.executor import Bench, Result, Waiting
from phipipe.keys import key_of
from phipipe.remote_store import SharedStore
from phipipe.settings import Settings
from phipipe.store import Store
from phipipe.turns import OWNER
from phipipe.visible import visible

if TYPE_CHECKING:
    from phipipe.device import Device

PREFIX = "dask://"
CERTIFICATES = "(README: From a laptop to a cluster)"
CONNECT_S = 20.0
RETRY_S, RETRIED_S = (
    2.0,
    5.0,
)  # between attempts to find the next scheduler, and for one: Dask's own get rarer
PROGRESS_S = 1.0
HOST = "host "  # labels of machines that count as the same for measurements
UNLIMITED = 1_000_000.0  # of a resource that is a label


def address(url: str) -> str:
    """Dask's address of the scheduler at ``url`` (``dask://HOST:PORT``): TLS, except on this very
    machine.

    There, too, where Dask's settings ask for it: behind ``localhost`` may be a tunnel.

    Raises:
        RecipeError: the address makes no sense.
        ToolchainError: Dask is not installed.
    """
    host, colon, port = url.removeprefix(PREFIX).rpartition(":")
    if not url.startswith(PREFIX) or not colon or not port.isdigit() or not host:
        raise RecipeError(f"`{url}` is no scheduler's address", hint="give dask://HOST:PORT")
    plain = _is_loopback(host) and not imported().Security().require_encryption
    return f"{'tcp' if plain else 'tls'}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def security(where: str, role: str) -> Any:
    """Dask's certificates for ``where``, as ``role`` ("client", "worker"); None where nothing is
    encrypted.

    Raises:
        RecipeError: there are none, or they are not where Dask's settings say.
        ToolchainError: Dask is not installed.
    """
    distributed = imported()
    if where.startswith("tcp://"):
        return None
    made = distributed.Security(require_encryption=True)
    told = {"CA_FILE": made.tls_ca_file} | {
        f"{role.upper()}__{kind}": getattr(made, f"tls_{role}_{kind.lower()}")
        for kind in ("CERT", "KEY")
    }
    for name, value in told.items():
        setting = f"DASK_DISTRIBUTED__COMM__TLS__{name}"
        if not value:
            message = f"`{where}` is spoken to with TLS only, and {setting} is not set"
            raise RecipeError(message, hint=f"it names a PEM file; so do the others {CERTIFICATES}")
        if "\n" not in value and not Path(value).is_file():  # PEM itself will do, too
            raise RecipeError(
                f"{setting} names `{value}`, and there is no such file",
                hint=f"set it {CERTIFICATES}",
            )
    try:
        made.get_connection_args(role)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"TLS cannot use its certificates: {error}", hint=f"set others {CERTIFICATES}"
        ) from None
    return made


def unreachable(where: str, error: BaseException) -> ToolchainError:
    """Why nobody can be spoken to at ``where``, which is told as users write it."""
    where = f"dask://{where.partition('://')[2]}"
    if isinstance(error, imported().comm.CommClosedError):
        return ToolchainError(
            f"who answers at `{where}` hangs up: TLS on one side only, certificates that do not "
            f"belong together, or "
            "no scheduler",
            hint=f"set DASK_DISTRIBUTED__COMM__… on both sides alike {CERTIFICATES}",
        )
    reason = type(error).__name__
    cause: BaseException | None = error
    while cause:  # the first of all that has words
        reason, cause = (
            str(cause).partition("\n")[0] or reason,
            cause.__cause__ or cause.__context__,
        )
    return ToolchainError(
        f"no scheduler answers at `{where}`: {reason}", hint="dask scheduler --port 8786"
    )


def imported() -> Any:
    """The module ``distributed``."""
    try:
        import distributed
    except ImportError:
        raise ToolchainError(
            "`dask://` needs Dask, which is not installed", hint="pip install 'phipipe[dask]'"
        ) from None
    for name in [*logging.root.manager.loggerDict]:  # what matters is said by us
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


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
        "memory_bytes": step.memory_bytes,
        "recipe": step.recipe,
    }


def work(payload: str) -> str:
    """Do a step: JSON of task, topic, ``described``, inputs' keys → JSON of its key, or of its
    failure."""
    told = json.loads(payload)
    try:
        if told["phipipe"] != __version__:
            raise ToolchainError(
                f"this phipipe is {told['phipipe']}, a worker's is {__version__}",
                hint="install the same version",
            )
        OWNER.set(
            told["task"]
        )  # whoever did it before is lost: the scheduler does not give a task to two
        step = Step(**told["step"])
        _prepare(step)
        with _turn(step.measurement):
            return json.dumps(_work(step, told["inputs"], _teller(told["topic"], told["task"])))
    except PhipipeError as error:
        return json.dumps({"error": encoded(error)})


def _teller(topic: str, task: str) -> Callable[[int, int, str], None]:
    """What tells the client, once a second, how far ``task`` is."""
    last = 0.0

    def tell(done: int, total: int, unit: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            imported().get_worker().log_event(topic, [task, done, total, unit])

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


def _work(
    step: Step, keys: dict[str, str], on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    store, bench, shared = _place(Settings.read())
    shared.again()
    with _LOOKING:
        bench.dismiss(keep={str(step.toolchain)})
    with store.session(), progress.listening(on_progress):
        inputs = {name: _input(name, key, store, shared) for name, key in keys.items()}
        with _LOOKING:
            found = bench.look(step, inputs, {})
        if isinstance(found, Waiting):
            _say(f"{step.name} {found.key[:12]} starts")
            found = bench.make(found, inputs, on_progress)
            _say(f"{step.name} {found.key[:12]} {'was there' if found.cached else 'done'}")
        else:
            shared.offer(found.stored, store)  # it may be gone from there
    if not shared.writes:
        raise StoreError(
            f"a worker cannot share what it makes: `{shared.url}` does not take it",
            hint="see its log",
        )
    return {
        "key": found.key,
        "cached": found.cached,
        "usage": dict(found.usage),
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


def resources(devices: Sequence[str], toolchains: Sequence[str]) -> dict[str, float]:
    """What this machine advertises as a worker: memory, and labels for system, architecture, kinds,
    toolchains.

    ``devices``: what it is, names or a user's own files. ``toolchains``: the only ones that it does
    steps of; none means all that exist for it.

    Raises:
        TargetError: there is no such device, or this machine cannot be it.
        ToolchainError: there is no such toolchain.
    """
    from phipipe import hardware

    labels = [
        f"system {platform.system().lower()}",
        *(f"machine {kind}" for kind in sorted(hardware.kinds())),
    ]
    labels += [f"device {_own(name).name}" for name in devices]
    if unknown := set(toolchains) - set(toolchain.names()):
        message = f"unknown toolchain `{min(unknown)}`"
        raise ToolchainError(message, hint=f"toolchains: {', '.join(toolchain.names())}")
    offered = toolchains or [name for name in toolchain.names() if toolchain.foreign(name) is None]
    labels += [f"toolchain {name}" for name in offered]
    labels.append(f"{HOST}{key_of(measure.host())[:12]}")
    return dict.fromkeys(labels, UNLIMITED) | {
        "memory_gib": round(hardware.memory_bytes() / 2**30, 2)
    }


def _own(name: str) -> Device:
    """The device ``name``, which this machine is said to be.

    Raises:
        TargetError: it cannot be.
    """
    from phipipe import device, hardware

    found = device.load(name)
    if found.architecture not in (None, hardware.architecture()):
        raise TargetError(
            f"this machine is no {found.title}: its processor is {hardware.architecture()}, not "
            f"{found.architecture}",
            hint="leave --device out: it serves all steps that are not bound to a device",
        )
    if (missing := hardware.lacks(found.units[0].api)) and len(found.units) == 1:
        raise TargetError(
            f"this machine is no {found.title}: it has no {missing}", hint="leave --device out"
        )
    return found


def serve(
    url: str, settings: Settings, jobs: int, had: Mapping[str, float], say: Callable[[str], None]
) -> None:
    """Work for the scheduler at ``url`` (``dask://HOST:PORT``), and for those that follow it there,
    until we are ended.

    ``had``: ``resources``.

    Raises:
        RecipeError: nothing is shared, or certificates are missing.
        ToolchainError: no scheduler answers.
    """
    where = address(url)
    keys = security(where, "worker")
    _place(settings)
    options: dict[str, Any] = {
        "nthreads": jobs,
        "resources": dict(had),
        "memory_limit": 0,
        "dashboard": False,
    }
    loopback = _is_loopback(where.partition("://")[2].rpartition(":")[0])
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
    if (wrong := await _tried(where, options.get("security"), CONNECT_S)) is not None:
        raise unreachable(where, wrong)
    while True:
        async with imported().Worker(where, local_directory=str(folder), **options) as worker:
            say(f"working for {where} as {worker.address}: {', '.join([memory, *labels])}")
            await worker.finished()
        say(f"the scheduler at {where} is gone; working on as soon as it is back")
        while await _tried(where, options.get("security"), RETRIED_S) is not None:
            await asyncio.sleep(RETRY_S)


async def _tried(where: str, keys: Any, timeout_s: float) -> Exception | None:
    """What goes wrong when the scheduler is spoken to; None if nothing does. A worker of Dask's
    would not say it."""
    try:
        comm = await imported().comm.connect(
            where, timeout_s, **(keys.get_connection_args("worker") if keys else {})
        )
    except (OSError, TimeoutError) as error:
        return error
    await comm.close()
    return None

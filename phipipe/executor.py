"""One step: stored already? else run and commit. Keys, caching and damage are decided here; order
is ``schedule``'s.

A step's key needs the digests of its inputs, so keys are found on the way. What a step is about to
read is hashed first; damage is put aside, and whoever made it makes it again.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from phipipe import downloads, hardware, keys, outside, progress, remote_store, toolchain, why
from phipipe.backends.base import Json, Step
from phipipe.errors import Interrupted, PhipipeError, SourceError, ToolchainError
from phipipe.measure import host
from phipipe.plan import Plan
from phipipe.process import Request, Worker
from phipipe.records import Stored
from phipipe.remote_store import SharedStore
from phipipe.settings import Settings
from phipipe.store import Store
from phipipe.toolchain import Installed


class Listener(Protocol):
    """Who shows what happens. ``label`` names the step, and the build where it belongs to one of
    several.

    Every method but ``note`` is called from the run's own thread only.
    """

    def started(self, label: str, why: str) -> None: ...
    def progress(self, label: str, done: int, total: int, unit: str) -> None: ...
    def finished(self, label: str, result: Result) -> None: ...
    def failed(self, label: str, error: PhipipeError) -> None: ...
    def installing(self, toolchain: str) -> None: ...
    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one step. ``usage`` has seconds and peak bytes, empty for a cached one."""

    step: Step
    key: str
    stored: Stored
    cached: bool
    shared: bool = False  # cached on another machine: it came from the remote store
    usage: Mapping[str, float] = field(default_factory=dict)
    machine: str | None = None  # who did it, if not this one


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What ``plan`` says of one step. ``key`` is None where an input is still to be made."""

    step: Step
    key: str | None
    cached: bool
    why: str


@dataclass(kw_only=True)
class Outcome:
    """How one build ended. ``package`` is None where none was asked for, or where it failed."""

    plan: Plan
    results: dict[str, Result] = field(default_factory=dict)
    package: Path | None = None
    error: PhipipeError | None = None
    seconds: float = 0.0

    @property
    def all_cached(self) -> bool:
        return self.error is None and all(result.cached for result in self.results.values())

    def load(self, step: str, name: str) -> Any:
        """A JSON file that ``step`` wrote, or None if that step did not come about."""
        result = self.results.get(step)
        return json.loads((result.stored.path / name).read_text("utf-8")) if result else None


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A step whose result is not stored: all that is needed to make it."""

    step: Step
    key: str
    record: dict[str, Json]
    why: str


Results = Mapping[str, Result]  # input name → what fills it


class Bench:
    """Where steps are done: the store, the toolchains, the workers.

    ``lacks``, ``prepare`` and ``make`` may be called from several threads, everything else from
    one. ``threads`` is what each worker may compute with, None for all cores; measurements always
    get all.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        note: Callable[[str], None],
        threads: int | None = None,
    ) -> None:
        self._store, self._settings, self._note, self._threads = store, settings, note, threads
        self._idle: dict[str, list[Worker]] = defaultdict(list)
        self._busy: set[Worker] = set()
        self._toolchains: dict[str, Installed] = {}
        self._checked: set[str] = set()
        self._preparing: defaultdict[str, threading.Lock] = defaultdict(
            threading.Lock
        )  # one installs, others wait
        self._workers = threading.Lock()
        self._stopped = False
        self._remote = remote_store.connect(settings, note)
        self._history: why.History | None = None

    def here(self, step: Step) -> bool:
        """Whether ``step`` is done on this machine."""
        return True

    def lacks(self, step: Step) -> str | None:
        """The toolchain that must be installed here (``prepare``) before ``look`` can tell the key
        of ``step``."""
        name = step.toolchain
        if (
            name is not None
            and name not in self._toolchains
            and (found := toolchain.installed(name, self._settings))
        ):
            self._toolchains[name] = found
        return None if name in self._toolchains else name

    def prepare(self, name: str) -> None:
        """Have toolchain ``name`` installed. This can take minutes; ``stop`` ends it.

        Raises:
            ToolchainError: it cannot be installed.
        """
        self._toolchain(name)

    def close(self) -> None:
        """No more steps will come."""
        self.dismiss(keep=set())

    @property
    def shared(self) -> SharedStore | None:
        """Where results are shared."""
        return self._remote

    def _record_of(self, result: Result) -> Mapping[str, Json]:
        return self._store.record(result.key)

    def look(self, step: Step, inputs: Results, before: Results) -> Result | Waiting:
        """The stored result of ``step``, or what it takes to make it. ``before`` feeds a step's
        provenance."""
        record = self._record(step, {name: r.stored.digest for name, r in inputs.items()}, before)
        key = keys.key_of(record)
        if stored := self._store.lookup(key):
            if not (self._remote and self._remote.lacks(key, self._store)):
                return Result(step=step, key=key, stored=stored, cached=True)
            return Waiting(step=step, key=key, record=record, why="stored, not shared yet")
        return Waiting(step=step, key=key, record=record, why=self._explain(step, record, key))

    def make(
        self, waiting: Waiting, inputs: Results, on_progress: Callable[[int, int, str], None]
    ) -> Result:
        """Run the step, unless another process has meanwhile.

        Raises:
            Damaged: an input is not what was stored; whoever made it must make it again.
            PhipipeError: the step's own failure.
        """
        step, key = waiting.step, waiting.key
        sharing = progress.listening(on_progress)  # the step itself has ways of its own to be heard
        with self._store.lock(key), downloads.in_use(step.folder), sharing:
            if stored := self._store.lookup(key):
                if self._remote and self._remote.lacks(key, self._store):
                    self._remote.offer(stored, self._store)
                return Result(step=step, key=key, stored=stored, cached=True)
            with self._turn(key) as shared:
                if shared:
                    return Result(step=step, key=key, stored=shared, cached=True, shared=True)
                return self._make(waiting, inputs, on_progress)

    def _turn(self, key: str) -> AbstractContextManager[Stored | None]:
        return self._remote.turn(key, self._store) if self._remote else nullcontext()

    def _make(
        self, waiting: Waiting, inputs: Results, on_progress: Callable[[int, int, str], None]
    ) -> Result:
        step, key = waiting.step, waiting.key
        paths = {name: self._store.consume(result.stored) for name, result in inputs.items()}
        paths |= {name: source.folder for name, source in step.outside.items()}
        with self._store.scratch() as scratch:
            out = step.folder or scratch / "out"
            request = Request(
                step=step.name, runs=step.runs, inputs=paths, params=waiting.record["params"]
            )
            if step.toolchain:
                self._check(step.toolchain, waiting.record["tools"])
                usage = self._in_worker(step, request, scratch, on_progress)
            else:
                usage = self._in_process(request, out, on_progress)
            self._check_copy(step, waiting.record, out)
            told = {"step": step.name, "recipe": step.recipe, "usage": usage}
            stored = self._store.commit(key, out, {**waiting.record, **told})
        if self._remote:
            self._remote.offer(stored, self._store)
        return Result(step=step, key=key, stored=stored, cached=False, usage=usage)

    def peek(self, step: Step, inputs: Results, before: Results) -> Result | None:
        """The stored result of ``step``, changing nothing; None if it must be made."""
        if not self._is_installed(step.toolchain):
            return None
        key = keys.key_of(
            self._record(step, {name: r.stored.digest for name, r in inputs.items()}, before)
        )
        stored = self._store.peek(key)
        return None if stored is None else Result(step=step, key=key, stored=stored, cached=True)

    def foresee(self, plan: Plan) -> list[Forecast]:
        """What a run would do now, changing nothing: cached or will run, and why."""
        done: dict[str, Result] = {}
        return [self._foresee(step, done) for step in plan.steps]

    def _foresee(self, step: Step, done: dict[str, Result]) -> Forecast:
        waits = [needed for needed in step.needs.values() if needed not in done]
        if waits:
            return Forecast(
                step=step, key=None, cached=False, why=f"needs `{waits[0]}`, which will run"
            )
        if not self._is_installed(step.toolchain):
            why = f"toolchain `{step.toolchain}` is not installed yet"
            return Forecast(step=step, key=None, cached=False, why=why)
        digests = {name: done[needed].stored.digest for name, needed in step.needs.items()}
        record = self._record(step, digests, done)
        key = keys.key_of(record)
        stored = self._store.peek(key)
        if stored is None:
            return Forecast(step=step, key=key, cached=False, why=self._explain(step, record, key))
        done[step.name] = Result(step=step, key=key, stored=stored, cached=True)
        return Forecast(step=step, key=key, cached=True, why="")

    def _explain(self, step: Step, record: Mapping[str, Json], key: str) -> str:
        """Why ``record`` has no result yet. The store's records are read once: they may be many."""
        if self._store.was_damaged(key):
            return "its stored result was damaged"
        if self._history is None:
            self._history = why.history(self._store)
        return why.explain(self._history, step.name, record, step.recipe)

    def _check_copy(self, step: Step, record: Mapping[str, Json], out: Path) -> None:
        """A step that only takes files in must have taken the very bytes that its key promises."""
        if step.copies:
            (name, source), *_ = step.outside.items()
            if keys.tree_digest(keys.hash_tree(out)) != record["inputs"][name]:
                outside.forget(source, self._store.root)
                raise SourceError(
                    f"`{source.folder}` changed while it was read",
                    hint="run the same command again",
                )

    def _record(self, step: Step, inputs: dict[str, str], before: Results) -> dict[str, Json]:
        digests = {
            name: outside.digest(source, self._store.root) for name, source in step.outside.items()
        }
        params = dict(step.params)
        for source in step.outside.values():
            params["files"] = list(source.files)
        if step.provenance:
            params["steps"] = {
                name: _provenance(self._record_of(r), r.key) for name, r in before.items()
            }
        record: dict[str, Json] = {
            "format": keys.FORMAT,
            "runs": step.runs,
            "version": step.version,
            "params": params,
            "inputs": inputs | digests,
            "tools": dict(self._toolchain(step.toolchain).packages) if step.toolchain else {},
        }
        if step.measurement:
            record["host"] = host()
        return record

    def _is_installed(self, name: str | None) -> bool:
        return (
            name is None
            or name in self._toolchains
            or toolchain.installed(name, self._settings) is not None
        )

    def _toolchain(self, name: str) -> Installed:
        with self._preparing[name]:
            if name not in self._toolchains:
                self._toolchains[name] = toolchain.ensure(
                    name, self._settings, self._note, self._is_stopped
                )
            return self._toolchains[name]

    def _check(self, name: str, tools: Mapping[str, Json]) -> None:
        """Before the first real use of toolchain ``name``: are all files there, and is it still
        what the key says?"""
        with self._preparing[name]:
            if name not in self._checked:
                self._toolchains[name] = toolchain.check(
                    name, self._settings, self._note, self._is_stopped
                )
                self._checked.add(name)
            if self._toolchains[name].packages != tools:
                raise ToolchainError(
                    f"toolchain `{name}` was replaced meanwhile", hint="run the same command again"
                )

    def _is_stopped(self) -> bool:
        return self._stopped

    def _in_process(
        self, request: Request, out: Path, on_progress: Callable[[int, int, str], None]
    ) -> dict[str, float]:
        """Run a light step right here: it copies or downloads files, or reads small JSON."""

        def heard(done: int, total: int, unit: str) -> None:
            if self._stopped:  # nobody can kill a thread: it ends where it reports
                raise Interrupted("stopped")
            on_progress(done, total, unit)

        module, _, function = request.runs.partition(":")
        out.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with progress.listening(heard):
            getattr(importlib.import_module(module), function)(request.inputs, out, request.params)
        return {"seconds": time.perf_counter() - start}

    def _in_worker(
        self,
        step: Step,
        request: Request,
        scratch: Path,
        on_progress: Callable[[int, int, str], None],
    ) -> dict[str, float]:
        with self._worker(str(step.toolchain), own=step.measurement) as worker:
            return worker.run(request, scratch, on_progress=on_progress).usage()

    @contextmanager
    def _worker(self, name: str, own: bool) -> Iterator[Worker]:
        """A worker of toolchain ``name``, imports and all; a measurement's ``own``, so that memory
        is its own."""
        with self._workers:
            if self._stopped:
                raise Interrupted("stopped")
            worker = (
                self._idle[name].pop() if self._idle[name] and not own else self._start(name, own)
            )
            self._busy.add(worker)
        try:
            yield worker
        except BaseException:
            own = True  # whatever state it is in, nobody else gets it
            raise
        finally:
            with self._workers:
                self._busy.discard(worker)
                if not own:
                    self._idle[name].append(worker)
            if own:
                worker.close()

    def _start(self, name: str, own: bool) -> Worker:
        threads = None if own else self._threads
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            threads = threads_per_worker(1)
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        return Worker(
            self._toolchain(name).python,
            name=name,
            log_folder=self._store.root / "logs",
            settings=self._settings,
            env=limit,
        )

    def dismiss(self, keep: set[str]) -> None:
        """Let idle workers go, but those of the toolchains in ``keep``."""
        with self._workers:
            gone = [
                worker for name in self._idle if name not in keep for worker in self._idle[name]
            ]
            self._idle = defaultdict(
                list, {name: ws for name, ws in self._idle.items() if name in keep}
            )
        for worker in gone:
            worker.close()

    def stop(self, force: bool = False) -> None:
        """Make every running step end soon with ``Interrupted``; with ``force`` at once. No new one
        starts."""
        with self._workers:
            self._stopped = True
            busy = list(self._busy)
        for worker in busy:
            worker.stop(force)


def threads_per_worker(jobs: int) -> int | None:
    """Threads that each of ``jobs`` workers may use. No more than cores: llama.cpp's threads spin.

    None for all that the machine has: runtimes count them in their own ways, and know of no
    container's share.
    """
    cores = hardware.cores()
    return max(1, cores // jobs) if jobs > 1 or cores < (os.cpu_count() or 1) else None


def _provenance(record: Mapping[str, Json], key: str) -> dict[str, Json]:
    told = {
        name: record[name] for name in ("runs", "version", "params", "inputs", "tools", "digest")
    }
    files = [
        {name: output[name] for name in ("path", "size", "sha256")} for output in record["outputs"]
    ]  # no times
    return told | {"outputs": files, "key": key}

"""The loop over a plan's steps: stored? else run and commit. Decides order, caching and failure, nothing else.

A step's key needs the digests of its inputs, so keys are found on the way. What a step is about to read
is hashed first; damage is put aside and rebuilt, once, by the same loop.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from phipipe import keys, outside, toolchain
from phipipe.backends.base import Json, Step
from phipipe.errors import Interrupted, PhipipeError, SourceError, StepFailed
from phipipe.measure import host
from phipipe.plan import Plan
from phipipe.process import Request, Worker
from phipipe.settings import Settings
from phipipe.store import Damaged, Store, Stored
from phipipe.toolchain import Installed

REBUILDS = 3  # a step's inputs may be found damaged this often in one run before we give up


class Listener(Protocol):
    """Who shows what happens. Every method may be called from the run's own thread only."""

    def started(self, step: Step, why: str) -> None: ...
    def progress(self, step: Step, done: int, total: int, unit: str) -> None: ...
    def finished(self, result: Result) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one step. ``usage`` has seconds and peak bytes, empty for a cached one."""

    step: Step
    key: str
    stored: Stored
    cached: bool
    usage: Mapping[str, float] = field(default_factory=dict)


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


def attempt(plan: Plan, store: Store, settings: Settings, listener: Listener, out: Path | None) -> Outcome:
    """Run ``plan`` and put its package into ``out``; a failure ends in the outcome, an interruption does not."""
    outcome, start = Outcome(plan=plan), time.perf_counter()
    try:
        with Run(plan, store, settings, listener) as run:
            for result in run.results():
                outcome.results[result.step.name] = result
            if out is not None:
                run.export("package", out / plan.build.name)
                outcome.package = out / plan.build.name
    except Interrupted:
        raise
    except PhipipeError as error:
        outcome.error = error
    outcome.seconds = time.perf_counter() - start
    return outcome


class Run:
    """One build over one store. Use as a context manager: it ends the workers it started."""

    def __init__(self, plan: Plan, store: Store, settings: Settings, listener: Listener) -> None:
        self._plan, self._store, self._settings, self._listener = plan, store, settings, listener
        self._steps = {step.name: step for step in plan.steps}
        self._done: dict[str, Result] = {}
        self._workers: dict[str, Worker] = {}
        self._toolchains: dict[str, Installed] = {}
        self._checked: set[str] = set()

    def __enter__(self) -> Run:
        self._stack = ExitStack()
        self._stack.enter_context(self._store.session())
        self._stack.callback(self._close_workers)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def results(self) -> Iterator[Result]:
        """Run the plan, yielding each step's result as soon as it is there.

        Raises:
            PhipipeError: the first failure; what was finished before it stays in the store.
        """
        for i, step in enumerate(self._plan.steps):
            yield self._result(step.name)
            self._close_workers(keep={s.toolchain for s in self._plan.steps[i + 1 :] if not s.measurement})

    def export(self, name: str, target: Path) -> None:
        """Copy the result of step ``name`` to ``target``, unless the very same files are there already.

        Raises:
            StoreError: ``target`` holds something that phipipe did not write.
        """
        for _ in range(REBUILDS):
            try:
                self._store.materialise(self._result(name).stored, target)
                return
            except Damaged as damage:
                self._forget(damage)
        raise StepFailed(f"step `{name}`: its result keeps getting damaged", hint="check the disk")

    def _forget(self, damage: Damaged) -> None:
        self._listener.note(f"damaged in the cache, building again: {damage.message}")
        self._done = {name: r for name, r in self._done.items() if r.stored.digest != damage.digest}

    def forecast(self) -> list[Forecast]:
        """What ``results`` would do now, changing nothing: cached or will run, and why."""
        return [self._foresee(step) for step in self._plan.steps]

    def _foresee(self, step: Step) -> Forecast:
        waits = [needed for needed in step.needs.values() if needed not in self._done]
        if waits:
            return Forecast(step=step, key=None, cached=False, why=f"needs `{waits[0]}`, which will run")
        if step.toolchain and step.toolchain not in self._toolchains:
            found = toolchain.installed(step.toolchain, self._settings)
            if found is None:
                return Forecast(
                    step=step, key=None, cached=False, why=f"toolchain `{step.toolchain}` is not installed yet"
                )
            self._toolchains[step.toolchain] = found
        record = self._record(step, {name: self._done[needed].stored.digest for name, needed in step.needs.items()})
        key = keys.key_of(record)
        stored = self._store.peek(key)
        if stored is None:
            return Forecast(step=step, key=key, cached=False, why=explain(self._store, step.name, record))
        self._done[step.name] = Result(step=step, key=key, stored=stored, cached=True)
        return Forecast(step=step, key=key, cached=True, why="")

    def _result(self, name: str) -> Result:
        if name in self._done:
            return self._done[name]
        step = self._steps[name]
        for _ in range(REBUILDS):
            try:
                result = self._once(step)
            except Damaged as damage:
                self._forget(damage)
                continue
            self._done[name] = result
            self._listener.finished(result)
            return result
        raise StepFailed(
            f"step `{name}`: its inputs keep getting damaged", hint="check the disk; then phipipe cache verify"
        )

    def _once(self, step: Step) -> Result:
        inputs = {name: self._result(needed) for name, needed in step.needs.items()}
        record = self._record(step, {name: result.stored.digest for name, result in inputs.items()})
        key = keys.key_of(record)
        if stored := self._store.lookup(key):
            return Result(step=step, key=key, stored=stored, cached=True)
        with self._store.lock(key):
            if stored := self._store.lookup(key):  # another process may have finished meanwhile
                return Result(step=step, key=key, stored=stored, cached=True)
            self._listener.started(step, explain(self._store, step.name, record))
            return self._build(step, key, record, inputs)

    def _build(self, step: Step, key: str, record: dict[str, Json], inputs: Mapping[str, Result]) -> Result:
        paths = {name: self._store.consume(result.stored) for name, result in inputs.items()}
        paths |= {name: source.folder for name, source in step.outside.items()}
        with self._store.scratch() as scratch:
            request = Request(step=step.name, runs=step.runs, inputs=paths, params=record["params"])
            usage = self._in_worker(step, request, scratch) if step.toolchain else _in_process(request, scratch)
            self._check_copy(step, record, scratch / "out")
            stored = self._store.commit(key, scratch / "out", {**record, "step": step.name, "usage": usage})
        return Result(step=step, key=key, stored=stored, cached=False, usage=usage)

    def _check_copy(self, step: Step, record: Mapping[str, Json], out: Path) -> None:
        """A step that only takes files in must have taken the very bytes that its key promises."""
        if step.outside and not step.needs:
            (name, source), *_ = step.outside.items()
            if keys.tree_digest(keys.hash_tree(out)) != record["inputs"][name]:
                outside.forget(source, self._store.root)
                raise SourceError(f"`{source.folder}` changed while it was read", hint="run the same command again")

    def _record(self, step: Step, inputs: dict[str, str]) -> dict[str, Json]:
        digests = {name: outside.digest(source, self._store.root) for name, source in step.outside.items()}
        params = dict(step.params)
        for source in step.outside.values():
            params["files"] = list(source.files)
        if step.provenance:
            params["steps"] = {name: _provenance(result, self._store) for name, result in self._done.items()}
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

    def _toolchain(self, name: str) -> Installed:
        if name not in self._toolchains:
            self._toolchains[name] = toolchain.ensure(name, self._settings, self._listener.note)
        return self._toolchains[name]

    def _in_worker(self, step: Step, request: Request, scratch: Path) -> dict[str, float]:
        assert step.toolchain is not None
        if step.toolchain not in self._checked:  # before the first real use: are all its files there?
            self._toolchains[step.toolchain] = toolchain.check(step.toolchain, self._settings, self._listener.note)
            self._checked.add(step.toolchain)
        with self._worker(step) as worker:
            outcome = worker.run(request, scratch, on_progress=lambda *report: self._listener.progress(step, *report))
        return outcome.usage()

    @contextmanager
    def _worker(self, step: Step) -> Iterator[Worker]:
        """The toolchain's worker, imports and all; a measurement gets one of its own, so that memory is its own."""
        name = str(step.toolchain)
        if not step.measurement:
            if name not in self._workers:
                self._workers[name] = self._start(name)
            yield self._workers[name]
            return
        self._close_workers()
        worker = self._start(name)
        try:
            yield worker
        finally:
            worker.close()

    def _start(self, name: str) -> Worker:
        return Worker(
            self._toolchain(name).python, name=name, log_folder=self._store.root / "logs", settings=self._settings
        )

    def _close_workers(self, keep: set[str | None] = frozenset()) -> None:  # type: ignore[assignment]
        for name in [n for n in self._workers if n not in keep]:
            self._workers.pop(name).close()


def _in_process(request: Request, scratch: Path) -> dict[str, float]:
    """Run a light step right here: it only copies files or reads small JSON."""
    module, _, function = request.runs.partition(":")
    out = scratch / "out"
    out.mkdir()
    start = time.perf_counter()
    getattr(importlib.import_module(module), function)(request.inputs, out, request.params)
    return {"seconds": time.perf_counter() - start}


def _provenance(result: Result, store: Store) -> dict[str, Json]:
    record = store.record(result.key)
    return {name: record[name] for name in ("runs", "version", "params", "inputs", "tools", "outputs", "digest")} | {
        "key": result.key
    }


def explain(store: Store, step: str, record: Mapping[str, Json]) -> str:
    """Why ``record`` has no result yet: the difference from the nearest record of a step of that name."""
    nearest: tuple[int, list[str]] | None = None
    for other in store.records():
        if (other.get("step"), other.get("runs")) != (step, record["runs"]):
            continue
        found = differences(other, record)
        if nearest is None or len(found) < nearest[0]:
            nearest = (len(found), found)
    if nearest is None:
        return "first time"
    if not nearest[1]:
        return "its stored result is gone"
    return "changed: " + ", ".join(nearest[1][:3]) + (" …" if len(nearest[1]) > 3 else "")


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[str]:
    """Human words for what differs between two records, most telling first."""
    found = []
    if old.get("version") != new.get("version"):
        found.append("phipipe's own step")
    found += [f"input {name}" for name in _changed(old, new, "inputs")]
    found += [
        f"{n} {_short(old['params'].get(n))} → {_short(new['params'].get(n))}" for n in _changed(old, new, "params")
    ]
    found += [
        f"{n} {old['tools'].get(n, 'absent')} → {new['tools'].get(n, 'absent')}" for n in _changed(old, new, "tools")
    ]
    if old.get("host") != new.get("host"):
        found.append("this machine")
    return found


def _changed(old: Mapping[str, Json], new: Mapping[str, Json], part: str) -> list[str]:
    a, b = old.get(part, {}), new.get(part, {})
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:23] + "…"

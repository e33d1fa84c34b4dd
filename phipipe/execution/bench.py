"""One step: stored already? else run and commit. Keys, caching and damage are decided here; order
is ``dispatch``'s.

A step's key needs the digests of its inputs, so keys are found on the way. What a step is about to
read is hashed first; damage is put aside, and whoever made it makes it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from phipipe import progress, steps
from phipipe.errors import Interrupted, SourceError, StoreError
from phipipe.evaluate.speed import host
from phipipe.execution import why
from phipipe.execution.estimates import Estimate, Timings
from phipipe.execution.exchange import Request
from phipipe.execution.results import Forecast, Result, Results, Waiting
from phipipe.execution.servers import Servers
from phipipe.execution.tools import Tools
from phipipe.execution.watch import Expected
from phipipe.planning.plan import Plan
from phipipe.processes import spending
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Json, Step
from phipipe.store import digests as outside_digests
from phipipe.store import downloads, keys
from phipipe.store import shared as shared_store
from phipipe.store.records import Stored
from phipipe.store.store import Store


class Bench:
    """Where steps are done on this machine: the store, the toolchains, the step servers.

    ``threads`` is what each server may compute with, None for all cores; measurements always get
    all.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        note: Callable[[str], None],
        threads: int | None = None,
    ) -> None:
        self._store = store
        self._servers = Servers(settings, store.root / "logs", threads)
        self._tools = Tools(settings, note, lambda: self._servers.stopped)
        self.shared = shared_store.connect(settings, note)
        self._history: why.History | None = None

    def here(self, step: Step) -> bool:
        """Whether ``step`` is done on this machine."""
        return True

    def lacks(self, step: Step) -> str | None:
        """The toolchain that must be installed here (``prepare``) before ``look`` can tell the key
        of ``step``."""
        name = step.toolchain
        return None if name is None or self._tools.has(name) else name

    def prepare(self, name: str) -> None:
        """Have toolchain ``name`` installed. This can take minutes; ``stop`` ends it.

        Raises:
            ToolchainError: it cannot be installed.
        """
        self._tools.get(name)

    def dismiss(self, keep: set[str]) -> None:
        """Let idle servers go, but those of the toolchains in ``keep``."""
        self._servers.dismiss(keep)

    def stop(self, force: bool = False) -> None:
        """Make every running step end soon with ``Interrupted``; with ``force`` at once. No new one
        starts."""
        self._servers.stop(force)

    def close(self) -> None:
        """No more steps will come."""
        self.dismiss(keep=set())

    def look(self, step: Step, inputs: Results, before: Results) -> Result | Waiting:
        """The stored result of ``step``, or what it takes to make it. ``before`` feeds a step's
        provenance."""
        record = self._record(step, _digests(inputs), before)
        key = keys.key_of(record)
        if stored := self._store.lookup(key):
            if not (self.shared and self.shared.lacks(key, self._store)):
                return Result(step=step, key=key, stored=stored, cached=True)
            return Waiting(step=step, key=key, record=record, why="stored, not shared yet")
        return Waiting(step=step, key=key, record=record, why=self._explain(step, record, key))

    def make(self, waiting: Waiting, inputs: Results, on_progress: OnProgress) -> Result:
        """Run the step, unless another process has meanwhile.

        Raises:
            Damaged: an input is not what was stored; whoever made it must make it again.
            PhipipeError: the step's own failure.
        """
        step, key = waiting.step, waiting.key
        sharing = progress.listening(on_progress)  # the step itself has ways of its own to be heard
        with self._store.lock(key), downloads.in_use(step.folder), sharing:
            if stored := self._store.lookup(key):
                if self.shared and self.shared.lacks(key, self._store):
                    self.shared.offer(stored, self._store)
                return Result(step=step, key=key, stored=stored, cached=True)
            with self._turn(key) as shared:
                if shared:
                    return Result(step=step, key=key, stored=shared, cached=True, shared=True)
                return self._make(waiting, inputs, on_progress)

    def _turn(self, key: str) -> AbstractContextManager[Stored | None]:
        return self.shared.turn(key, self._store) if self.shared else nullcontext()

    def _make(self, waiting: Waiting, inputs: Results, on_progress: OnProgress) -> Result:
        step, key = waiting.step, waiting.key
        paths = {name: self._store.consume(result.stored) for name, result in inputs.items()}
        paths |= {name: source.folder for name, source in step.outside.items()}
        workplace = self._store.unfinished(key) if step.resumes else self._store.scratch()
        with workplace as scratch:
            out = step.folder or scratch / "out"
            request = Request(
                step=step.name,
                runs=step.runs,
                inputs=paths,
                params=waiting.record["params"],
                expected=self._expected(step, inputs),
            )
            if step.toolchain:
                self._tools.check(step.toolchain, waiting.record["tools"])
                with self._servers.lend(
                    self._tools.get(step.toolchain), step.measurement
                ) as server:
                    usage = server.run(request, scratch, on_progress).usage()
            else:
                usage = self._in_process(request, out, on_progress)
            self._check_copy(step, waiting.record, out)
            about = {"step": step.name, "recipe": step.recipe, "usage": usage}
            stored = self._store.commit(key, out, {**waiting.record, **about})
        if self.shared:
            self.shared.offer(stored, self._store)
        return Result(step=step, key=key, stored=stored, cached=False, usage=usage)

    def peek(self, step: Step, inputs: Results, before: Results) -> Result | None:
        """The stored result of ``step``, changing nothing; None if it must be made."""
        if step.toolchain and not self._tools.would_have(step.toolchain):
            return None
        key = keys.key_of(self._record(step, _digests(inputs), before))
        stored = self._store.peek(key)
        return None if stored is None else Result(step=step, key=key, stored=stored, cached=True)

    def foresee(self, plan: Plan) -> list[Forecast]:
        """What a run would do now, changing nothing: cached or will run, and why."""
        done: dict[str, Result] = {}
        return [self._foresee(step, done) for step in plan.steps]

    def _foresee(self, step: Step, done: dict[str, Result]) -> Forecast:
        waits = [needed for needed in step.needs.values() if needed not in done]
        if waits:
            reason = f"needs `{waits[0]}`, which will run"
            return Forecast(step=step, key=None, cached=False, why=reason)
        if step.toolchain and not self._tools.would_have(step.toolchain):
            reason = f"toolchain `{step.toolchain}` is not installed yet"
            return Forecast(step=step, key=None, cached=False, why=reason)
        digests = {name: done[needed].stored.digest for name, needed in step.needs.items()}
        record = self._record(step, digests, done)
        key = keys.key_of(record)
        stored = self._store.peek(key)
        if stored is None:
            return Forecast(step=step, key=key, cached=False, why=self._explain(step, record, key))
        done[step.name] = Result(step=step, key=key, stored=stored, cached=True)
        return Forecast(step=step, key=key, cached=True, why="", stored=stored)

    def estimates(self, forecast: Sequence[Forecast]) -> dict[str, Estimate]:
        """How long each step of ``forecast`` that will run takes, by its name, as far as earlier
        results tell."""
        todo = [item.step for item in forecast if not item.cached]
        sizes = {
            item.step.name: item.stored.size_bytes if item.stored else item.step.output_bytes
            for item in forecast
        }
        timings = self._past().timings if todo else Timings()
        found = {step.name: timings.of_step(step, sizes) for step in todo}
        return {name: estimate for name, estimate in found.items() if estimate}

    def _expected(self, step: Step, inputs: Results) -> Expected:
        """What ``step`` will take, as far as the records tell that were read already."""
        if self._history is None:
            return Expected(output_bytes=step.output_bytes)
        sizes = {step.needs[name]: r.stored.size_bytes for name, r in inputs.items()}
        known = self._history.timings.of_step(step, sizes)
        return Expected(seconds=known.seconds if known else None, output_bytes=step.output_bytes)

    def _past(self) -> why.History:
        """The store's records, which are read once: they may be many."""
        if self._history is None:
            self._history = why.history(self._store)
        return self._history

    def _explain(self, step: Step, record: Mapping[str, Json], key: str) -> str:
        """Why ``record`` has no result yet."""
        if self._store.was_damaged(key):
            return "its stored result was damaged"
        return why.explain(self._past(), step.name, record, step.recipe)

    def _check_copy(self, step: Step, record: Mapping[str, Json], out: Path) -> None:
        """A step that only takes files in must have taken the very bytes that its key promises."""
        if step.copies:
            (name, source), *_ = step.outside.items()
            if keys.tree_digest(keys.hash_tree(out)) != record["inputs"][name]:
                outside_digests.forget(source, self._store.root)
                raise SourceError(
                    f"`{source.folder}` changed while it was read",
                    hint="run the same command again",
                )

    def _record(self, step: Step, inputs: dict[str, str], before: Results) -> dict[str, Json]:
        digests = {
            name: outside_digests.digest(source, self._store.root)
            for name, source in step.outside.items()
        }
        params = dict(step.params)
        for source in step.outside.values():
            params["files"] = list(source.files)
        if step.provenance:
            params["steps"] = {
                name: _provenance(self._record_of(r), r) for name, r in before.items()
            }
        record: dict[str, Json] = {
            "format": keys.FORMAT,
            "runs": step.runs,
            "version": step.version,
            "params": params,
            "inputs": inputs | digests,
            "tools": dict(self._tools.get(step.toolchain).packages) if step.toolchain else {},
        }
        if step.measurement:
            record["host"] = host() if step.host is None else dict(step.host)
        return record

    def _in_process(self, request: Request, out: Path, on_progress: OnProgress) -> dict[str, float]:
        """Run a light step right here: it copies or downloads files, or reads small JSON."""

        def heard(done: int, total: int, unit: str) -> None:
            if self._servers.stopped:  # nobody can kill a thread: it ends where it reports
                raise Interrupted("stopped")
            on_progress(done, total, unit)

        function = steps.resolve(request.runs)
        out.mkdir(parents=True, exist_ok=True)
        start, before = time.perf_counter(), spending.of_thread()
        with progress.listening(heard):
            function(request.inputs, out, request.params)
        spent = spending.of_thread().since(before).usage()
        return {"seconds": round(time.perf_counter() - start, 3), **spent}

    def _record_of(self, result: Result) -> Mapping[str, Json]:
        """The record of ``result``, which may be on another machine."""
        try:
            return self._store.record(result.key)
        except StoreError:
            record = self.shared.record(result.key) if self.shared else None
            if record is None:
                raise
            return record


def _digests(inputs: Results) -> dict[str, str]:
    return {name: result.stored.digest for name, result in inputs.items()}


def _provenance(record: Mapping[str, Json], result: Result) -> dict[str, Json]:
    names = ("runs", "version", "params", "inputs", "tools", "digest")
    files = [
        {name: output[name] for name in ("path", "size", "sha256")} for output in record["outputs"]
    ]  # no times
    ran = {"toolchain": result.step.toolchain} if result.step.toolchain else {}
    return {name: record[name] for name in names} | {"outputs": files, "key": result.key} | ran

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
from phipipe.errors import Interrupted
from phipipe.execution import borrowing, step_records, why
from phipipe.execution.estimates import Estimate, Timings
from phipipe.execution.exchange import Request
from phipipe.execution.results import NEEDED, Forecast, Result, Results, Waiting, with_needed
from phipipe.execution.servers import Servers
from phipipe.execution.step_records import StepRecords
from phipipe.execution.tools import Tools
from phipipe.execution.watch import Expected
from phipipe.planning.plan import Plan
from phipipe.processes import spending
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Json, Step
from phipipe.store import digests as outside_digests
from phipipe.store import downloads, files, keys
from phipipe.store import shared as shared_store
from phipipe.store.records import LetGo, Stored
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
        self._store, self.settings = store, settings
        self._servers = Servers(settings, store.root / "logs", threads)
        self._tools = Tools(settings, note, lambda: self._servers.stopped)
        self.shared = shared_store.connect(settings, note)
        self._records = StepRecords(store=store, tools=self._tools, shared=self.shared)
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
        record = self._records.of(step, _digests(inputs), before)
        key = keys.key_of(record)
        place = borrowing.place_of(step, inputs)
        if stored := borrowing.placed(self._store.lookup(key), place):
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
            place = borrowing.place_of(step, inputs)
            if stored := borrowing.placed(self._store.lookup(key), place):
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
        if step.borrows and step.outside:
            return self._borrow(waiting)
        paths = self._consumed(inputs)
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
                layers=step.layers,
                seat=waiting.seat,
                memory_bytes=step.memory_bytes,
            )
            with borrowing.watched(inputs, self._store), files.sharing(waiting.takes_over):
                usage = self._run(waiting, request, scratch, on_progress)
            self._check_copy(step, waiting.record, out)
            stored = self._commit(waiting, inputs, out, usage)
        if self.shared:
            self.shared.offer(stored, self._store)
        return Result(step=step, key=key, stored=stored, cached=False, usage=usage)

    def _run(
        self, waiting: Waiting, request: Request, scratch: Path, on_progress: OnProgress
    ) -> dict[str, Json]:
        """Seconds and peak bytes of the step, done in its toolchain or right here."""
        step = waiting.step
        if not step.toolchain:
            return self._in_process(request, step.folder or scratch / "out", on_progress)
        self._tools.check(step.toolchain, waiting.record["tools"])
        tool = self._tools.get(step.toolchain)
        with self._servers.lend(tool, step.measurement, fresh=step.fresh) as server:
            return server.run(request, scratch, on_progress).usage()

    def _borrow(self, waiting: Waiting) -> Result:
        start = time.perf_counter()
        record = step_records.about(waiting, {})
        stored = borrowing.taken(waiting.step, waiting.key, record, self._store)
        usage = {"seconds": time.perf_counter() - start}
        return Result(step=waiting.step, key=waiting.key, stored=stored, cached=False, usage=usage)

    def _commit(
        self, waiting: Waiting, inputs: Results, out: Path, usage: dict[str, Json]
    ) -> Stored:
        step, record = waiting.step, step_records.about(waiting, usage)
        place = borrowing.place_of(step, inputs)
        if place is not None:
            return borrowing.mended(waiting.key, place, inputs, out, record, self._store)
        taken = inputs[step.takes_over].stored if step.takes_over and waiting.takes_over else None
        return self._store.commit(waiting.key, out, record, taken)

    def _consumed(self, inputs: Results) -> dict[str, Path]:
        """The files of ``inputs`` by name; what was let go here, others may still share.

        Raises:
            LetGo: names all that must be made again.
        """
        paths: dict[str, Path] = {}
        gone: list[str] = []
        for name, result in inputs.items():
            try:
                paths[name] = self._store.consume(result.stored)
            except LetGo as error:
                again = self.shared.fetch(result.key, self._store) if self.shared else None
                if again is None:
                    gone.append(error.digest)
                else:
                    paths[name] = self._store.consume(again)
        if gone:
            raise LetGo(gone)
        return paths

    def peek(self, step: Step, inputs: Results, before: Results) -> Result | None:
        """The stored result of ``step``, changing nothing; None if it must be made."""
        if step.toolchain and not self._tools.would_have(step.toolchain):
            return None
        key = keys.key_of(self._records.of(step, _digests(inputs), before))
        stored = borrowing.placed(self._store.peek(key), borrowing.place_of(step, inputs))
        return None if stored is None else Result(step=step, key=key, stored=stored, cached=True)

    def foresee(self, plan: Plan) -> list[Forecast]:
        """What a run would do now, changing nothing: cached or will run, and why."""
        done: dict[str, Result] = {}
        return with_needed([self._foresee(step, done) for step in plan.steps])

    def _foresee(self, step: Step, done: dict[str, Result]) -> Forecast:
        waits = [needed for needed in step.needs.values() if needed not in done]
        if waits:
            reason = f"needs `{waits[0]}`, which will run"
            return Forecast(step=step, key=None, cached=False, why=reason)
        if step.toolchain and not self._tools.would_have(step.toolchain):
            reason = f"toolchain `{step.toolchain}` is not installed yet"
            return Forecast(step=step, key=None, cached=False, why=reason)
        digests = {name: done[needed].stored.digest for name, needed in step.needs.items()}
        record = self._records.of(step, digests, done)
        key = keys.key_of(record)
        inputs = {name: done[needed] for name, needed in step.needs.items()}
        stored = borrowing.placed(self._store.peek(key), borrowing.place_of(step, inputs))
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
        if self._store.is_wanted(key):
            return NEEDED
        if self._store.was_damaged(key):
            return "its stored result was damaged"
        return why.explain(self._past(), step.name, record, step.recipe)

    def _check_copy(self, step: Step, record: Mapping[str, Json], out: Path) -> None:
        """A step that only takes files in must have taken the very bytes that its key promises."""
        if step.copies:
            (name, source), *_ = step.outside.items()
            if keys.tree_digest(keys.hash_tree(out)) != record["inputs"][name]:
                outside_digests.forget(source, self._store.root)
                raise borrowing.changed(source.folder)

    def _in_process(self, request: Request, out: Path, on_progress: OnProgress) -> dict[str, Json]:
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
        return {"seconds": time.perf_counter() - start, **spent}


def _digests(inputs: Results) -> dict[str, str]:
    return {name: result.stored.digest for name, result in inputs.items()}

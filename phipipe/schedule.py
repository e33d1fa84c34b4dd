"""Order: the steps of one or many builds as one graph, independent ones side by side within a
budget.

A measurement runs alone on the machine. A toolchain is installed aside, while steps that do not
need it go on. A build that fails keeps nobody else's steps from running.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phipipe import hardware, refusals
from phipipe.errors import PhipipeError, Skipped, StepFailed
from phipipe.executor import Bench, Listener, Outcome, Result, Waiting, threads_per_worker
from phipipe.installs import Installs
from phipipe.nodes import Node, graph
from phipipe.plan import Plan
from phipipe.records import Damaged
from phipipe.settings import Settings
from phipipe.store import Store

REBUILDS = 3  # a step's inputs may be found damaged this often in one run before we give up
MEMORY_SHARE = 0.8  # of what is free when the run starts: estimates are estimates
EXPORTS = 4  # packages that are copied out side by side; more would only wait for the disk
AWAY = 256  # steps that other machines may be asked for at a time
STOP_S = 10.0  # how long running steps may take to end after Ctrl-C


# store, settings, note, threads per worker → where steps are done
Engine = Callable[[Store, Settings, Callable[[str], None], int | None], Bench]


def default_jobs() -> int:
    """Steps that run side by side unless the user says otherwise: two at least, so that imports
    overlap."""
    cores, memory_gib = hardware.cores(), hardware.memory_bytes() / 2**30
    return max(1, min(8, max(2, cores // 2), int(memory_gib // 4)))


def attempt(
    plans: Sequence[Plan],
    store: Store,
    settings: Settings,
    listener: Listener,
    out: Path | None = None,
    jobs: int | None = None,
    *,
    place: Callable[[Path, str, str], Path] = lambda out, name, digest: out / name,
    fail_fast: bool = False,
    engine: Engine | None = None,
) -> list[Outcome]:
    """Run ``plans`` and put their packages into ``out``. A build's failure ends in its outcome.

    Args:
        place: ``out``, a build's name and the digest of its package → the package's folder.
        engine: makes the ``Bench`` that steps are done on; None for one on this machine.
        fail_fast: after the first failure nothing more is started; what was not finished is
            ``Skipped``.

    Raises:
        StoreError: ``out`` cannot be written.
        Interrupted: somebody asked us to stop (KeyboardInterrupt passes, too); all that had started
            is ended.
    """
    if out is not None:
        refusals.probe(out)
    with store.session():
        run = _Run(plans, store, settings, listener, jobs or default_jobs(), fail_fast, engine)
        run.target = None if out is None else lambda name, digest: place(out, name, digest)
        return run.outcomes()


class _Run:
    """Work per event grows with what the event touches, never with the number of plans.

    ``_fresh`` are steps whose inputs have just come, still to be looked up; ``_queue`` those that
    wait to be made; ``_todo`` all that are still needed and have no result.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        store: Store,
        settings: Settings,
        listener: Listener,
        jobs: int,
        fail_fast: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self._plans, self._store, self._listener, self._jobs, self._fail_fast = (
            plans,
            store,
            listener,
            jobs,
            fail_fast,
        )
        self.target: Callable[[str, str], Path] | None = (
            None  # build's name, package's digest → its folder
        )
        made = graph(plans)
        self._nodes, self._names = made.copy(), made.names
        share = threads_per_worker(
            jobs if len(plans) > 1 else 1
        )  # the steps of one build are nearly a chain
        self._bench = (engine or Bench)(store, settings, listener.note, share)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outcomes = [Outcome(plan=plan) for plan in plans]
        self._exports: deque[Callable[[], Callable[[], None]]] = deque()
        self._exporting: set[int] = (
            set()
        )  # builds whose packages are on their way out, or wait for it
        self._damaged: Counter[int] = Counter()  # build → how often its package was found damaged
        self._copying = 0
        self._threads: list[threading.Thread] = []
        self._elsewhere = engine is not None
        self._memory_bytes = MEMORY_SHARE * hardware.available_bytes()
        self._start = time.perf_counter()
        self._followers: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self._nodes.values():
            for identity in {*node.needs.values(), *node.after}:
                self._followers[identity].append(node)
        self._left = [
            len(set(names.values())) for names in self._names
        ]  # steps without a result, per build
        self._todo: dict[str, Node] = dict(self._nodes)
        self._tools = Counter(tool for node in self._nodes.values() if (tool := _shared_tool(node)))
        self._fresh = deque(node for node in self._nodes.values() if self._has_inputs(node))
        self._queue: dict[str, Node] = {}
        self._running: dict[str, Node] = {}
        self._installs = Installs()

    def outcomes(self) -> list[Outcome]:
        try:
            while self._advance():
                self._events.get()()
                with contextlib.suppress(queue.Empty):  # what else has come meanwhile
                    while True:
                        self._events.get_nowait()()
        except BaseException:
            self._stop()
            raise
        if self._installs.going:  # nobody waits for it any more
            self._stop()
        self._bench.close()
        for names, outcome in zip(self._names, self._outcomes, strict=True):
            done = {step.name: self._nodes[names[step.name]].result for step in outcome.plan.steps}
            steps = {step.name: step for step in outcome.plan.steps}
            outcome.results = {
                name: replace(r, step=steps[name]) for name, r in done.items() if r is not None
            }
        return self._outcomes

    def _advance(self) -> bool:
        """Start whatever can be; say whether there is anything left to wait for."""
        while self._fresh:  # cached ones open others
            node = self._fresh.popleft()
            if (
                node.result is None
                and not node.running
                and node.waiting is None
                and self._is_due(node)
            ):
                self._look(node)
        if not any(node.step.measurement for node in self._here()):
            for tool in self._installs.next(self._is_due):
                self._install(tool)
        for measuring in (False, True):
            self._launch_some(measuring)
        while self._exports and self._copying < EXPORTS:
            self._copying += 1
            self._in_thread(self._exports.popleft())
        self._bench.dismiss(
            keep={*self._tools, *(str(node.step.toolchain) for node in self._running.values())}
        )
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return bool(self._todo or self._running or self._exporting)

    def _alive(self, node: Node) -> bool:
        return any(self._outcomes[build].error is None for build in node.builds)

    def _has_inputs(self, node: Node) -> bool:
        return all(self._nodes[identity].result for identity in (*node.needs.values(), *node.after))

    def _is_due(self, node: Node) -> bool:
        return node.identity in self._todo and self._has_inputs(node)

    def _launch_some(self, measuring: bool) -> None:
        """Launch what waits, fits and is a measurement or not."""
        free = self._has_room() or self._elsewhere
        for node in (
            [n for n in self._queue.values() if n.step.measurement == measuring] if free else ()
        ):
            if not self._is_due(node):  # an input was found damaged, or nobody wants it any more
                node.waiting = None
                del self._queue[node.identity]
            elif self._fits(node):
                del self._queue[node.identity]
                self._launch(node)
            if not (self._has_room() or self._elsewhere):
                return

    def _has_room(self) -> bool:
        here = self._here()
        return len(here) < self._jobs and not any(n.step.measurement for n in here)

    def _here(self) -> list[Node]:
        """Steps that run on this machine."""
        return [node for node in self._running.values() if self._bench.here(node.step)]

    def _look(self, node: Node) -> None:
        """Find ``node``'s stored result, or what it takes to make it. Its key counts what its
        toolchain has."""
        before = {name: self._result(identity) for name, identity in node.before.items()}
        try:
            if tool := self._bench.lacks(node.step):
                self._installs.wait(tool, node)
                return
            found = self._bench.look(node.step, self._inputs(node), before)
        except PhipipeError as error:
            self._failed(node, error)
            return
        if isinstance(found, Waiting):
            node.waiting = found
            self._queue[node.identity] = node
        else:
            self._finished(node, found)

    def _install(self, tool: str) -> None:
        start = time.perf_counter()
        self._listener.installing(tool)

        def ended(error: PhipipeError | None) -> None:
            self._listener.installed(tool, time.perf_counter() - start, error)
            for node in self._installs.end(tool, error):
                if error is None:
                    self._fresh.append(node)
                elif self._is_due(node):
                    self._failed(node, error)

        def work() -> Callable[[], None]:
            try:
                self._bench.prepare(tool)
            except PhipipeError as failure:
                reason = failure
                return lambda: ended(reason)
            return lambda: ended(None)

        self._in_thread(work)

    def _result(self, identity: str) -> Result:
        result = self._nodes[identity].result
        assert result is not None  # only nodes whose inputs are there are ready
        return result

    def _inputs(self, node: Node) -> dict[str, Result]:
        return {name: self._result(identity) for name, identity in node.needs.items()}

    def _fits(self, node: Node) -> bool:
        here = self._here()
        if not self._bench.here(node.step):
            return len(self._running) - len(here) < AWAY
        if not self._has_room():
            return False
        if node.step.measurement:
            return not here and not self._installs.going
        if not here:
            return True
        needed = sum(n.step.memory_bytes for n in here) + node.step.memory_bytes
        return needed <= self._memory_bytes

    def _launch(self, node: Node) -> None:
        waiting, inputs = node.waiting, self._inputs(node)
        assert waiting is not None
        node.running = True
        self._running[node.identity] = node
        self._listener.started(node.label, waiting.why)

        def progress(*report: Any) -> None:
            self._events.put(lambda: self._listener.progress(node.label, *report))

        def work() -> Callable[[], None]:
            try:
                result = self._bench.make(waiting, inputs, progress)
            except Damaged as damage:
                error = damage
                return lambda: self._forget(node, error)
            except PhipipeError as failure:
                reason = failure
                return lambda: self._failed(node, reason)
            return lambda: self._finished(node, result)

        self._in_thread(work)

    def _in_thread(self, work: Callable[[], Callable[[], None]]) -> None:
        """Do ``work`` aside; what it returns is then called in the run's own thread."""

        def body() -> None:
            try:
                then = work()
            except BaseException as failure:  # noqa: BLE001 (a bug: it is raised where somebody sees it)
                problem = failure

                def then() -> None:
                    raise problem

            self._events.put(then)

        self._threads.append(threading.Thread(target=body, daemon=True))
        self._threads[-1].start()

    def _ended(self, node: Node) -> None:
        node.running, node.waiting = False, None
        self._running.pop(node.identity, None)

    def _finished(self, node: Node, result: Result) -> None:
        self._ended(node)
        node.result = result
        self._settle(node)
        self._listener.finished(node.label, result)
        self._fresh.extend(
            follower for follower in self._followers[node.identity] if self._has_inputs(follower)
        )
        for build in node.builds:
            self._left[build] -= 1
            if not self._left[build]:
                self._complete(build)

    def _settle(self, node: Node) -> None:
        """``node`` is no longer to do: it is done, or nobody needs it."""
        if self._todo.pop(node.identity, None) and (tool := _shared_tool(node)):
            self._tools[tool] -= 1
            self._tools += Counter()  # drops what has come to zero

    def _failed(self, node: Node, error: PhipipeError) -> None:
        self._ended(node)
        self._listener.failed(node.label, error)
        for build in node.builds:
            self._fail(build, error)

    def _fail(self, build: int, error: PhipipeError) -> None:
        outcome = self._outcomes[build]
        if outcome.error is not None:
            return
        outcome.error, outcome.seconds = error, time.perf_counter() - self._start
        for node in map(self._nodes.__getitem__, self._names[build].values()):
            if not self._alive(node):
                self._settle(node)
        if self._fail_fast and not isinstance(error, Skipped):
            for other, unfinished in enumerate(self._left):
                if unfinished:
                    self._fail(
                        other, Skipped(f"not built: `{outcome.plan.build.name}` failed before")
                    )

    def _forget(self, node: Node, damage: Damaged) -> None:
        """``damage`` was put aside: whoever made it makes it again, then ``node`` has another
        turn."""
        self._ended(node)
        self._put_back(damage)
        node.damaged += 1
        if node.damaged >= REBUILDS:
            hint = "check the disk; then phipipe cache verify"
            self._failed(
                node,
                StepFailed(f"step `{node.step.name}`: its inputs keep getting damaged", hint=hint),
            )
        self._fresh.append(node)

    def _put_back(self, damage: Damaged) -> None:
        self._listener.note(f"damaged in the cache, building again: {damage.message}")
        for node in self._nodes.values():
            if node.result and node.result.stored.digest == damage.digest:
                node.result = None
                for build in node.builds:
                    self._left[build] += 1
                if self._alive(node):
                    self._todo[node.identity] = node
                    if tool := _shared_tool(node):
                        self._tools[tool] += 1
                self._fresh.append(node)

    def _complete(self, i: int) -> None:
        """All steps of build ``i`` have results: export its package."""
        plan, outcome = self._plans[i], self._outcomes[i]
        if outcome.error is not None or outcome.seconds or i in self._exporting:
            return
        if self.target is None:
            outcome.seconds = time.perf_counter() - self._start
            return
        package = self._result(self._names[i]["package"])
        self._export(i, package, self.target(plan.build.name, package.stored.digest))

    def _export(self, i: int, package: Result, target: Path) -> None:
        self._exporting.add(i)

        def work() -> Callable[[], None]:
            try:
                self._store.materialise(package.stored, target)
            except Damaged as damage:
                error = damage
                return lambda: self._export_again(i, error)
            except PhipipeError as failure:
                reason = failure
                return lambda: self._exported(i, target, reason)
            return lambda: self._exported(i, target, None)

        self._exports.append(work)

    def _exported(self, i: int, target: Path, error: PhipipeError | None) -> None:
        self._copying -= 1
        self._exporting.discard(i)
        outcome = self._outcomes[i]
        if error is not None:
            self._fail(i, error)
        elif outcome.error is None:
            outcome.seconds, outcome.package = time.perf_counter() - self._start, target

    def _export_again(self, i: int, damage: Damaged) -> None:
        self._copying -= 1
        self._exporting.discard(i)
        self._damaged[i] += 1
        if self._damaged[i] >= REBUILDS:
            self._fail(i, StepFailed("the package keeps getting damaged", hint="check the disk"))
        self._put_back(damage)

    def _stop(self) -> None:
        """End everything that runs; a second Ctrl-C ends it by force."""
        force = False
        end = time.monotonic() + STOP_S
        while True:
            try:
                self._bench.stop(force)
                for thread in self._threads:
                    if (
                        thread.is_alive()
                    ):  # the signal may have come while one was being started; the bench refuses it
                        thread.join(max(0.0, end - time.monotonic()))
                self._bench.close()
                return
            except KeyboardInterrupt:
                force = True


def _shared_tool(node: Node) -> str | None:
    """The toolchain whose idle workers ``node`` can use; a measurement starts one of its own."""
    return None if node.step.measurement else node.step.toolchain

"""Order: the steps of one or many builds as one graph, independent ones side by side within a
budget.

A measurement runs alone on the machine. A toolchain is installed aside, while steps that do not
need it go on. A build that fails keeps nobody else's steps from running.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from phipipe import hardware, progress
from phipipe.errors import PhipipeError, Skipped
from phipipe.execution.aside import Aside
from phipipe.execution.bench import Bench
from phipipe.execution.deliveries import Deliveries, Delivery
from phipipe.execution.installs import Installs
from phipipe.execution.keeping import Keeping, keeps_all
from phipipe.execution.manner import BUILD_ONLY, Manner, default_jobs
from phipipe.execution.nodes import Node, graph
from phipipe.execution.results import Listener, Outcome, Result, Waiting, Workplace
from phipipe.execution.room import Room
from phipipe.execution.servers import threads_per_server
from phipipe.execution.sweeps import Sweeps
from phipipe.execution.todo import Todo
from phipipe.execution.waits import Waits
from phipipe.planning.plan import Plan
from phipipe.progress import listening
from phipipe.settings import Settings
from phipipe.store import refusals, verification
from phipipe.store.records import Damaged, LetGo
from phipipe.store.store import Store

REBUILDS = 3  # a step's inputs may be found damaged this often in one run before we give up
MEMORY_SHARE = 0.8  # of what is free when the run starts: estimates are estimates
STOP_S = 10.0  # how long running steps may take to end after Ctrl-C


def attempt(
    plans: Sequence[Plan],
    store: Store,
    settings: Settings,
    listener: Listener,
    manner: Manner = BUILD_ONLY,
) -> list[Outcome]:
    """Run ``plans``. A build's failure ends in its outcome.

    Raises:
        StoreError: ``manner.out`` cannot be written.
        Interrupted: somebody asked us to stop (KeyboardInterrupt passes, too); all that had started
            is ended.
    """
    if manner.out is not None:
        refusals.probe(manner.out)
    jobs = manner.jobs or default_jobs()
    with store.session():
        # the steps of one build are nearly a chain
        threads = threads_per_server(jobs if len(plans) > 1 else 1)
        bench = (manner.engine or Bench)(store, settings, listener.note, threads)
        keeping = Keeping(store, [keeps_all(plan, settings) for plan in plans])
        manner = replace(manner, jobs=jobs)
        return _Run(plans, keeping, bench, listener, manner).outcomes()


class _Run:
    """Everything here happens in the thread that calls ``outcomes``.

    ``_queue`` holds steps that wait to be made, ``_running`` those that are.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        keeping: Keeping,
        bench: Workplace,
        listener: Listener,
        manner: Manner,
    ) -> None:
        self._plans, self._bench, self._listener, self._manner = plans, bench, listener, manner
        whole = graph(plans)
        self._names, self._todo = whole.names, Todo(whole)
        self._outcomes = [Outcome(plan=plan) for plan in plans]
        self._aside, self._keeping = Aside(), keeping
        self._installs, self._deliveries = Installs(), Deliveries(keeping.store, self._aside)
        self._room = Room(
            jobs=manner.jobs or 1,
            memory_bytes=MEMORY_SHARE * hardware.available_bytes(),
            is_here=bench.here,
            elsewhere=manner.engine is not None,
        )
        self._sweeps = Sweeps(self._todo, self._room, keeping.store)
        self._start, self._waits = time.perf_counter(), Waits()
        self._queue: dict[str, Node] = {}
        self._running: dict[str, Node] = {}

    def outcomes(self) -> list[Outcome]:
        """Run to the end; how each build ended."""
        try:
            while self._advance():
                self._aside.handle()
        except BaseException:
            self._stop()
            raise
        if self._installs.going:  # nobody waits for it any more
            self._stop()
        self._bench.close()
        for names, outcome in zip(self._names, self._outcomes, strict=True):
            outcome.results = self._keeping.results(outcome.plan, names, self._todo)
        return self._outcomes

    def _advance(self) -> bool:
        """Start whatever can be; say whether there is anything left to wait for."""
        for node in self._todo.take_fresh():  # cached ones open others
            self._look(node)
        if not any(node.step.measurement for node in self._room.here(self._running.values())):
            for tool in self._installs.next(self._todo.is_due):
                self._install(tool)
        for measuring in (False, True):
            self._launch_some(measuring)
        self._sweeps.seal()
        self._deliveries.start()
        in_use = {str(node.step.toolchain) for node in self._running.values()}
        self._bench.dismiss(keep={*self._todo.tools, *in_use})
        return bool(self._todo or self._running or self._deliveries)

    def _look(self, node: Node) -> None:
        """Find ``node``'s stored result, or what it takes to make it. Its key counts what its
        toolchain has."""
        try:
            if tool := self._bench.lacks(node.step):
                self._installs.wait(tool, node)
                return
            inputs, before = self._todo.inputs(node), self._todo.before(node)
            result = self._bench.look(node.step, inputs, before)
        except PhipipeError as error:
            self._failed(node, error)
            return
        if isinstance(result, Waiting):
            node.waiting = result
            self._queue[node.identity] = node
            self._waits.queued(node)
        else:
            self._finished(node, result)

    # Toolchains

    def _install(self, tool: str) -> None:
        self._listener.installing(tool)
        start = time.perf_counter()

        def end(result: PhipipeError | None) -> None:
            self._listener.installed(tool, time.perf_counter() - start, result)
            self._waits.installed(tool, list(self._running.values()))
            for node in self._installs.end(tool, result):
                if result is None:
                    self._waits.equipped(node, tool)
                    self._todo.renew(node)
                elif self._todo.is_due(node):
                    self._failed(node, result)

        def work() -> None:
            with listening(self._aside.relayed(partial(self._listener.progress, tool))):
                self._bench.prepare(tool)

        self._aside.start(work, end)

    # Steps that are made

    def _launch_some(self, measuring: bool) -> None:
        """Launch what waits, fits and is a measurement or not."""
        for node in self._sweeps.ordered(self._queue.values(), measuring):
            if not self._room.takes_more(self._running.values()):
                return
            if not self._todo.is_due(node):  # an input was found damaged, or nobody wants it
                node.waiting = None
                del self._queue[node.identity]
            elif not self._is_held(node):
                del self._queue[node.identity]
                self._launch(node)

    def _is_held(self, node: Node) -> bool:
        obstacle = self._room.obstacle(node, [*self._running.values()], self._is_installing)
        return obstacle is not None or self._sweeps.holds(node)

    @property
    def _is_installing(self) -> bool:
        return bool(self._installs.going)

    def _launch(self, node: Node) -> None:
        waiting, inputs = node.waiting, self._todo.inputs(node)
        assert waiting is not None
        waiting.seat = self._sweeps.seat(node)
        waiting.takes_over = self._keeping.gives(node, self._todo)
        node.running = True
        self._running[node.identity] = node
        held = self._waits.held(node, self._sweeps.awaited(node), self._room.obstacle)
        self._listener.started(node.label, waiting.why, held)
        tell = self._aside.relayed(partial(self._listener.progress, node.label))

        def work() -> Result:
            with progress.named(node.label):
                return self._bench.make(waiting, inputs, tell)

        self._aside.start(work, partial(self._made, node))

    def _made(self, node: Node, result: Result | PhipipeError) -> None:
        node.running, node.waiting = False, None
        self._sweeps.ended(node)
        self._waits.ended(node, list(self._running.values()), self._is_installing)
        self._running.pop(node.identity, None)
        if isinstance(result, Damaged):
            self._forget(node, result)
        elif isinstance(result, PhipipeError):
            self._failed(node, result)
        else:
            self._finished(node, result)

    def _finished(self, node: Node, result: Result) -> None:
        self._waits.came(node)
        completed = self._todo.finish(node, result)
        self._keeping.after(node, self._todo)
        self._listener.finished(node.label, result)
        for build in completed:
            self._complete(build)

    def _failed(self, node: Node, error: PhipipeError) -> None:
        self._listener.failed(node.label, error)
        for build in node.builds:
            self._fail(build, error)

    def _fail(self, build: int, error: PhipipeError) -> None:
        outcome = self._outcomes[build]
        if outcome.error is not None:
            return
        outcome.error, outcome.seconds = error, time.perf_counter() - self._start
        self._todo.fail(build)
        if self._manner.fail_fast and not isinstance(error, Skipped):
            message = f"not built: `{outcome.plan.build.name}` failed before"
            for other in self._todo.unfinished():
                self._fail(other, Skipped(message))

    def _forget(self, node: Node, damage: Damaged) -> None:
        """``damage`` was put aside: whoever made it makes it again, then ``node`` has another
        turn."""
        self._put_back(damage, node)
        node.damaged += not isinstance(damage, LetGo)
        if node.damaged >= REBUILDS:
            lost = f"step `{node.step.name}`: its inputs keep getting damaged"
            self._failed(node, verification.lost(lost))
        self._todo.renew(node)

    def _put_back(self, damage: Damaged, reader: Node | None = None) -> None:
        if not isinstance(damage, LetGo):
            self._listener.note(f"damaged in the cache, building again: {damage.message}")
            reader = None
        self._todo.put_back(*damage.digests, reader=reader)

    # Packages

    def _complete(self, build: int) -> None:
        """All steps of ``build`` have results: deliver its package."""
        plan, outcome = self._plans[build], self._outcomes[build]
        if outcome.error is not None or outcome.seconds or build in self._deliveries:
            return
        if self._manner.out is None:
            outcome.seconds = time.perf_counter() - self._start
            return
        node = self._todo.nodes[self._names[build]["package"]]
        package = self._todo.result(node.identity)
        target = self._manner.place(self._manner.out, plan.build.name, package.stored.digest)
        delivery = Delivery(plan.build, package, target, move=not self._keeping.stays(node))
        self._deliveries.add(build, delivery, self._delivered)

    def _delivered(self, build: int, target: Path, result: bool | PhipipeError) -> None:
        outcome = self._outcomes[build]
        if isinstance(result, Damaged):
            self._deliveries.damaged[build] += not isinstance(result, LetGo)
            if self._deliveries.damaged[build] >= REBUILDS:
                self._fail(build, verification.lost("the package keeps getting damaged"))
            self._put_back(result)
        elif isinstance(result, PhipipeError):
            self._fail(build, result)
        elif outcome.error is None:
            outcome.seconds, outcome.package = time.perf_counter() - self._start, target

    def _stop(self) -> None:
        """End everything that runs; a second Ctrl-C ends it by force."""
        force, end = False, time.monotonic() + STOP_S
        while True:
            try:
                self._bench.stop(force)
                self._aside.join(end)
                self._bench.close()
                return
            except KeyboardInterrupt:
                force = True

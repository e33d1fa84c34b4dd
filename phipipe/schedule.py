"""Order: the steps of one or many builds as one graph, independent ones side by side within a budget.

Steps that builds share are one node, known by what they do and read, before anything is run. A measurement
runs alone on the machine. A build that fails keeps nobody else's steps from running.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from phipipe import keys
from phipipe.backends.base import Step
from phipipe.errors import PhipipeError, StepFailed
from phipipe.executor import Bench, Listener, Outcome, Result, Waiting, threads_per_worker
from phipipe.plan import Plan
from phipipe.settings import Settings
from phipipe.store import Damaged, Store

REBUILDS = 3  # a step's inputs may be found damaged this often in one run before we give up
MEMORY_SHARE = 0.8  # of what is free when the run starts: estimates are estimates
STOP_S = 10.0  # how long running steps may take to end after Ctrl-C


@dataclass(kw_only=True)
class Node:
    """A step of one build or of several. ``needs`` and ``after`` hold other nodes' identities."""

    step: Step
    identity: str
    needs: dict[str, str]
    after: set[str]
    builds: set[int]
    label: str = ""
    before: dict[str, str] = field(default_factory=dict)  # step name → identity, for provenance
    waiting: Waiting | None = None
    result: Result | None = None
    running: bool = False
    damaged: int = 0


def graph(plans: Sequence[Plan]) -> tuple[dict[str, Node], list[dict[str, str]]]:
    """Every distinct step of ``plans`` by identity, in an order that works; and per plan, step name → identity."""
    nodes: dict[str, Node] = {}
    names: list[dict[str, str]] = []
    for i, plan in enumerate(plans):
        own: dict[str, str] = {}
        names.append(own)
        for step in plan.steps:
            node = _node(step, own)
            own[step.name] = node.identity
            nodes.setdefault(node.identity, node).builds.add(i)
    for node in nodes.values():
        node.label = _label(node, plans)
    return nodes, names


def _label(node: Node, plans: Sequence[Plan]) -> str:
    """The step's name, after the build that it belongs to, or the backend where several of its builds share it."""
    if len(node.builds) == len(plans):
        return node.step.name
    if len(node.builds) == 1:
        return f"{plans[min(node.builds)].build.name}: {node.step.name}"
    backends = {plans[build].build.recipe.backend for build in node.builds}
    return f"{backends.pop()}: {node.step.name}" if len(backends) == 1 else node.step.name


def labels(plans: Sequence[Plan]) -> list[str]:
    """What listeners will hear the steps called."""
    return [node.label for node in graph(plans)[0].values()]


def _node(step: Step, own: dict[str, str]) -> Node:
    """``own`` has the identities of the plan's earlier steps by name."""
    needs = {name: own[needed] for name, needed in step.needs.items()}
    told = {
        "runs": step.runs,
        "version": step.version,
        "params": dict(step.params),
        "outside": {name: [str(o.folder), *o.files] for name, o in step.outside.items()},
        "toolchain": step.toolchain,
        "measurement": step.measurement,
        "needs": needs,
        "before": own if step.provenance else {},
    }
    after = set(own.values()) if step.provenance else {own[name] for name in step.after}
    before = dict(own) if step.provenance else {}
    return Node(step=step, identity=keys.key_of(told), needs=needs, after=after, builds=set(), before=before)


def default_jobs() -> int:
    """Steps that run side by side unless the user says otherwise: two at least, so that imports overlap."""
    cores, memory_gib = os.cpu_count() or 1, psutil.virtual_memory().total / 2**30
    return max(1, min(8, max(2, cores // 2), int(memory_gib // 4)))


def attempt(
    plans: Sequence[Plan],
    store: Store,
    settings: Settings,
    listener: Listener,
    out: Path | None = None,
    jobs: int | None = None,
) -> list[Outcome]:
    """Run ``plans`` and put their packages into ``out``. A build's failure ends in its outcome.

    Raises:
        Interrupted: somebody asked us to stop (KeyboardInterrupt passes, too); all that had started is ended.
    """
    with store.session():
        return _Run(plans, store, settings, listener, out, jobs or default_jobs()).outcomes()


class _Run:
    def __init__(
        self, plans: Sequence[Plan], store: Store, settings: Settings, listener: Listener, out: Path | None, jobs: int
    ) -> None:
        self._plans, self._store, self._listener, self._out, self._jobs = plans, store, listener, out, jobs
        self._nodes, self._names = graph(plans)
        share = threads_per_worker(jobs if len(plans) > 1 else 1)  # the steps of one build are nearly a chain
        self._bench = Bench(store, settings, listener.note, share)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outcomes = [Outcome(plan=plan) for plan in plans]
        self._exporting: dict[int, int] = {}  # build → how often its package was found damaged
        self._threads: list[threading.Thread] = []
        self._memory_bytes = MEMORY_SHARE * psutil.virtual_memory().available
        self._start = time.perf_counter()

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
        self._bench.dismiss(keep=set())
        return self._outcomes

    def _advance(self) -> bool:
        """Start whatever can be; say whether there is anything left to wait for."""
        looked = True
        while looked:  # cached ones open others
            looked = any([self._look(node) for node in self._ready() if node.waiting is None])  # noqa: C419 (every one)
        for node in self._ready():
            if node.waiting is not None and self._fits(node):
                self._launch(node)
        self._finish_builds()
        unfinished = [n for n in self._nodes.values() if n.result is None and self._alive(n)]
        self._bench.dismiss(keep={str(n.step.toolchain) for n in unfinished if n.running or not n.step.measurement})
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return bool(unfinished) or any(n.running for n in self._nodes.values()) or self._is_exporting()

    def _alive(self, node: Node) -> bool:
        return any(self._outcomes[build].error is None for build in node.builds)

    def _ready(self) -> list[Node]:
        """Nodes whose turn it is, measurements last."""
        found = [
            node
            for node in self._nodes.values()
            if node.result is None
            and not node.running
            and self._alive(node)
            and all(self._nodes[i].result for i in (*node.needs.values(), *node.after))
        ]
        return sorted(found, key=lambda node: node.step.measurement)

    def _look(self, node: Node) -> bool:
        """Find ``node``'s stored result, or what it takes to make it. Says whether a result is there now."""
        before = {name: self._result(identity) for name, identity in node.before.items()}
        try:
            found = self._bench.look(node.step, self._inputs(node), before)
        except PhipipeError as error:
            self._failed(node, error)
            return False
        if isinstance(found, Waiting):
            node.waiting = found
            return False
        self._finished(node, found)
        return True

    def _result(self, identity: str) -> Result:
        result = self._nodes[identity].result
        assert result is not None  # only nodes whose inputs are there are ready
        return result

    def _inputs(self, node: Node) -> dict[str, Result]:
        return {name: self._result(identity) for name, identity in node.needs.items()}

    def _fits(self, node: Node) -> bool:
        running = [n for n in self._nodes.values() if n.running]
        if not running:
            return True
        if node.step.measurement or any(n.step.measurement for n in running) or len(running) >= self._jobs:
            return False
        return sum(n.step.memory_bytes for n in running) + node.step.memory_bytes <= self._memory_bytes

    def _launch(self, node: Node) -> None:
        waiting, inputs = node.waiting, self._inputs(node)
        assert waiting is not None
        node.running = True
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

    def _finished(self, node: Node, result: Result) -> None:
        node.result, node.running, node.waiting = result, False, None
        self._listener.finished(node.label, result)

    def _failed(self, node: Node, error: PhipipeError) -> None:
        node.running = False
        for build in node.builds:
            outcome = self._outcomes[build]
            if outcome.error is None:
                outcome.error, outcome.seconds = error, time.perf_counter() - self._start

    def _forget(self, node: Node, damage: Damaged) -> None:
        """``damage`` was put aside: whoever made it makes it again, then ``node`` has another turn."""
        self._put_back(damage)
        node.running, node.waiting, node.damaged = False, None, node.damaged + 1
        if node.damaged >= REBUILDS:
            hint = "check the disk; then phipipe cache verify"
            self._failed(node, StepFailed(f"step `{node.step.name}`: its inputs keep getting damaged", hint=hint))

    def _put_back(self, damage: Damaged) -> None:
        self._listener.note(f"damaged in the cache, building again: {damage.message}")
        for node in self._nodes.values():
            if node.result and node.result.stored.digest == damage.digest:
                node.result = None

    def _finish_builds(self) -> None:
        """Export what is complete; note results and times."""
        for i, (plan, outcome) in enumerate(zip(self._plans, self._outcomes, strict=True)):
            done = {name: r for name, identity in self._names[i].items() if (r := self._nodes[identity].result)}
            outcome.results = {s.name: replace(done[s.name], step=s) for s in plan.steps if s.name in done}
            if outcome.error is not None or outcome.seconds or len(done) < len(plan.steps):
                continue
            if self._out is None:
                outcome.seconds = time.perf_counter() - self._start
            elif self._exporting.get(i, 0) >= 0:
                self._export(i, done["package"], self._out / plan.build.name)

    def _is_exporting(self) -> bool:
        return any(times < 0 for times in self._exporting.values())

    def _export(self, i: int, package: Result, target: Path) -> None:
        outcome, times = self._outcomes[i], self._exporting.get(i, 0)
        self._exporting[i] = -1  # on its way

        def work() -> Callable[[], None]:
            try:
                self._store.materialise(package.stored, target)
            except Damaged as damage:
                error = damage
                return lambda: self._export_again(i, times + 1, error)
            except PhipipeError as failure:
                return lambda reason=failure: done(reason)  # type: ignore[misc]
            return lambda: done(None)

        def done(error: PhipipeError | None) -> None:
            self._exporting[i] = 0
            outcome.seconds = time.perf_counter() - self._start
            outcome.package, outcome.error = (None, error) if error else (target, None)

        self._in_thread(work)

    def _export_again(self, i: int, times: int, damage: Damaged) -> None:
        self._exporting[i] = times
        self._put_back(damage)
        if times >= REBUILDS:
            self._outcomes[i].error = StepFailed("the package keeps getting damaged", hint="check the disk")

    def _stop(self) -> None:
        """End everything that runs; a second Ctrl-C ends it by force."""
        force = False
        end = time.monotonic() + STOP_S
        while True:
            try:
                self._bench.stop(force)
                for thread in self._threads:
                    if thread.is_alive():  # the signal may have come while one was being started; the bench refuses it
                        thread.join(max(0.0, end - time.monotonic()))
                self._bench.dismiss(keep=set())
                return
            except KeyboardInterrupt:
                force = True

"""Order of steps: what is shared runs once, what is independent runs side by side, what fails stops
its own build."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.places import TESTS
from testing.plans import CALLS, plan, step
from testing.tiny_toolchain import Tiny, wait_until

from phipipe.cli.listeners import Silent
from phipipe.errors import (
    Interrupted,
    PhipipeError,
    Skipped,
    StepFailed,
    StepKilled,
    ToolchainError,
)
from phipipe.evaluate.reports import Metrics
from phipipe.execution import nodes, room, servers, todo
from phipipe.execution.bench import Bench
from phipipe.execution.dispatch import attempt
from phipipe.execution.held import NOT_HELD, Held
from phipipe.execution.manner import Manner, default_jobs
from phipipe.execution.nodes import graph, labels
from phipipe.execution.results import Outcome, Result, Waiting
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Outside, Step
from phipipe.store.store import Store
from phipipe.toolchains import environments as toolchain

STEPS = {"work": f"{__name__}:work"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    import sys

    monkeypatch.setitem(sys.modules, "test_schedule", sys.modules[__name__])


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def run(store: Store, *plans: Plan, jobs: int = 4, listener: Any = None) -> list[Outcome]:
    return attempt(plans, store, Settings.read(), listener or Silent(), Manner(jobs=jobs))


def names() -> list[str]:
    return [name for name, _, _ in CALLS]


def overlap(a: str, b: str) -> bool:
    times = {name: (start, end) for name, start, end in CALLS}
    return times[a][0] < times[b][1] and times[b][0] < times[a][1]


def test_what_builds_share_runs_once(store: Store) -> None:
    shared = step("source")
    done = run(
        store, plan("a", shared, step("x", "source")), plan("b", shared, step("y", "source"))
    )
    assert sorted(names()) == ["source", "x", "y"]
    assert [set(outcome.results) for outcome in done] == [{"source", "x"}, {"source", "y"}]
    assert done[0].results["source"].stored == done[1].results["source"].stored


def test_two_names_for_the_same_work_are_one_step(store: Store) -> None:
    first = step("one")
    (outcome,) = run(store, plan("a", first, replace(first, name="two")))
    assert names() == ["one"]
    assert outcome.results["two"].key == outcome.results["one"].key
    assert outcome.results["two"].step.name == "two"


def test_independent_steps_run_side_by_side(store: Store) -> None:
    run(store, plan("a", step("x", seconds=0.3), step("y", seconds=0.3)), jobs=2)
    assert overlap("x", "y")


def test_one_job_is_one_after_another(store: Store) -> None:
    run(store, plan("a", step("x", seconds=0.05), step("y", seconds=0.05)), jobs=1)
    assert not overlap("x", "y")


def test_a_measurement_runs_alone(store: Store) -> None:
    run(
        store,
        plan(
            "a", step("x", seconds=0.1), step("m", seconds=0.1, alone=True), step("y", seconds=0.1)
        ),
    )
    assert overlap("x", "y")
    assert not overlap("m", "x")
    assert not overlap("m", "y")


def test_steps_that_do_not_fit_into_memory_together_wait(store: Store) -> None:
    huge = 10**15
    done = run(store, plan("a", *(step(n, seconds=0.05, memory_bytes=huge) for n in "xyz")))
    assert done[0].error is None
    assert not overlap("x", "y")
    assert not overlap("y", "z")


def test_after_is_order_without_input(store: Store) -> None:
    (outcome,) = run(store, plan("a", step("check", seconds=0.1), step("x", after=("check",))))
    assert names() == ["check", "x"]
    other = Store(store.root)
    (again,) = run(other, plan("a", step("x")))
    assert again.results["x"].key == outcome.results["x"].key  # order is no part of the key


def test_a_failure_stops_its_own_build_alone(store: Store) -> None:
    shared = step("source")
    bad = plan("bad", shared, step("x", "source", fail=True), step("after-x", "x"))
    good = plan("good", shared, step("y", "source", seconds=0.1), step("after-y", "y"))
    failed, fine = run(store, bad, good)
    assert isinstance(failed.error, StepFailed)
    assert set(failed.results) == {"source"}
    assert fine.error is None
    assert set(fine.results) == {"source", "y", "after-y"}
    assert "after-x" not in names()


def test_a_shared_failure_stops_every_build_that_needs_it(store: Store) -> None:
    shared = step("source", fail=True)
    done = run(
        store,
        plan("a", shared, step("x", "source")),
        plan("b", shared, step("y", "source")),
        plan("c", step("z")),
    )
    assert [type(outcome.error) for outcome in done] == [StepFailed, StepFailed, type(None)]
    assert names() == ["z"]


def test_a_failure_after_order_alone_counts_too(store: Store) -> None:
    (outcome,) = run(store, plan("a", step("check", fail=True), step("x", after=("check",))))
    assert isinstance(outcome.error, StepFailed)
    assert names() == []


def test_no_memory_in_one_worker_leaves_the_others_alone(
    store: Store, python_of: Callable[[str], Path]
) -> None:
    python_of("onnxruntime")

    def in_worker(what: str, **params: Any) -> Step:
        return replace(
            step("work", **params), toolchain="onnxruntime", runs=f"testing.steps_cheap/{what}"
        )

    limits = {
        **os.environ,
        "PHIPIPE_WORKER_PATH": str(TESTS),
        "PHIPIPE_MEMORY_LIMIT_GIB": "0.25",
    }
    plans = [plan("a", in_worker("allocate_until_killed")), plan("b", in_worker("count"))]
    greedy, modest = attempt(plans, store, Settings.read(limits), Silent(), Manner(jobs=2))
    assert isinstance(greedy.error, StepKilled)
    assert "memory" in f"{greedy.error.message} {greedy.error.hint}"
    assert modest.error is None


def test_a_bug_is_not_taken_for_a_failure(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        run(store, plan("a", step("x", bug=True)))


def test_what_was_finished_is_found_again(store: Store) -> None:
    made = plan("a", step("x"), step("y", "x"), step("z", "y", fail=True))
    run(store, made)
    (outcome,) = run(Store(store.root), made)
    assert names() == ["x", "y"]
    assert [outcome.results[n].cached for n in "xy"] == [True, True]


class Stopping(Silent):
    """Raises what Ctrl-C raises when the first step has ended."""

    def finished(self, label: str, result: Result) -> None:
        raise KeyboardInterrupt


def test_an_interruption_keeps_what_was_finished(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, plan("a", step("x"), step("y", "x")), listener=Stopping())
    run(Store(store.root), plan("a", step("x"), step("y", "x")))
    assert names() == ["x", "y"]


def test_labels_name_the_build_where_steps_are_its_own() -> None:
    shared = step("source")
    plans = [plan("a", shared, step("x", "source")), plan("b", shared, step("x", "source", more=1))]
    assert labels(plans) == ["source", "a: x", "b: x"]
    assert labels(plans[:1]) == ["source", "x"]
    both = [
        plan("a1", shared, step("x", "source")),
        plan("a2", shared, step("x", "source")),
        plan("b", shared),
    ]
    assert labels(both) == ["source", "a: x"]


def test_damage_is_made_again_by_whoever_made_it(store: Store, tmp_path: Path) -> None:
    first = step("x")
    run(store, plan("a", first))
    (tree,) = (store.root / "objects").iterdir()
    path = tree / "name.txt"
    status = path.stat()
    path.chmod(0o644)
    path.write_text("z")  # same size and, below, same time: only hashing sees it
    import os

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (outcome,) = run(Store(store.root), plan("a", first, step("y", "x")))
    assert outcome.error is None
    assert names() == ["x", "x", "y"]
    assert (outcome.results["x"].stored.path / "name.txt").read_text() == "x"


def test_a_file_that_changes_identity_is_another_step(tmp_path: Path) -> None:
    def taken(folder: str) -> Step:
        return replace(step("s"), outside={"files": Outside(tmp_path / folder, ("f",))})

    nodes, own = graph([plan("a", taken("one")), plan("b", taken("two")), plan("c", taken("one"))])
    assert len(nodes) == 2
    assert own[0] == own[2]


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_graph_runs_every_step_once_after_its_inputs(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    CALLS.clear()
    count = data.draw(st.integers(1, 8))
    made: list[Step] = []
    for i in range(count):
        needs = (
            data.draw(st.lists(st.sampled_from([s.name for s in made]), unique=True))
            if made
            else []
        )
        made.append(step(f"s{i}", *needs, alone=data.draw(st.booleans())))
    root = tmp_path_factory.mktemp("graph")
    (outcome,) = attempt(
        [plan("a", *made)],
        Store(root),
        Settings.read(),
        Silent(),
        Manner(jobs=data.draw(st.integers(1, 4))),
    )
    assert outcome.error is None
    assert sorted(names()) == sorted(s.name for s in made)
    place = {name: i for i, name in enumerate(names())}
    assert all(place[needed] < place[s.name] for s in made for needed in s.needs)


def test_bookkeeping_grows_with_the_steps_not_with_their_square(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    has_inputs = todo.Todo.has_inputs

    def counted(self: todo.Todo, node: nodes.Node) -> bool:
        nonlocal asked
        asked += 1
        return has_inputs(self, node)

    monkeypatch.setattr(todo.Todo, "has_inputs", counted)
    took = []
    for builds in (10, 40):
        asked = 0
        shared = step("source")
        done = run(
            store,
            *(
                plan(f"b{i}", shared, step("x", "source", n=i), step("y", "x"))
                for i in range(builds)
            ),
        )
        assert all(outcome.error is None for outcome in done)
        took.append(asked)
    assert took[1] < 6 * took[0]


def test_after_a_failure_nothing_more_is_started_if_that_is_wished(store: Store) -> None:
    plans = [
        plan("bad", step("x", fail=True)),
        *(plan(f"b{i}", step(f"s{i}", seconds=0.05)) for i in range(5)),
    ]
    done = attempt(plans, store, Settings.read(), Silent(), Manner(jobs=1, fail_fast=True))
    assert isinstance(done[0].error, StepFailed)
    assert all(isinstance(outcome.error, Skipped) for outcome in done[1:])
    assert not names()


def test_default_jobs_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(cores: int, gib: int) -> int:
        monkeypatch.setattr("phipipe.hardware.cores", lambda: cores)
        monkeypatch.setattr("phipipe.hardware.memory_bytes", lambda: gib * 2**30)
        return default_jobs()

    assert [machine(1, 64), machine(2, 24), machine(16, 64), machine(64, 256), machine(16, 7)] == [
        2,
        2,
        8,
        8,
        1,
    ]


def test_threads_are_shared_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("phipipe.hardware.cores", lambda: 16)
    assert [servers.threads_per_server(jobs) for jobs in (1, 2, 4, 8, 32)] == [None, 8, 4, 2, 1]
    monkeypatch.setattr(
        "phipipe.hardware.cores", lambda: 4
    )  # a container's share, which runtimes do not see
    assert [servers.threads_per_server(jobs) for jobs in (1, 2, 8)] == [4, 2, 1]


def test_a_stopped_bench_starts_nothing(store: Store, python_of: Callable[[str], Path]) -> None:
    python_of("torch")
    bench = Bench(store, Settings.read(), print)
    bench.stop()
    one = replace(step("x"), toolchain="torch")
    waiting = bench.look(one, {}, {})
    assert isinstance(waiting, Waiting)
    with pytest.raises(Interrupted):
        bench.make(waiting, {}, lambda *report: None)


def test_outcomes_of_failed_builds_are_errors_of_ours(store: Store) -> None:
    (outcome,) = run(store, plan("a", step("x", fail=True)))
    assert isinstance(outcome.error, PhipipeError)
    assert outcome.load("x", Metrics) is None


# Toolchains that have to be installed first


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    """A toolchain, `tiny`, whose installation takes until ``go_on``."""
    made = Tiny(tmp_path / "tiny")
    monkeypatch.setattr(toolchain, "LOCKS", made.locks)
    for name, value in (made.variables | {"PHIPIPE_WORKER_PATH": str(TESTS)}).items():
        monkeypatch.setenv(name, value)
    yield made
    made.go_on()
    for process in made.processes():
        process.kill()


def heavy(name: str, *needs: str, runs: str = "count", **params: Any) -> Step:
    """A step that runs in toolchain `tiny`."""
    return replace(
        step(name, *needs, **params), toolchain="tiny", runs=f"testing.steps_cheap/{runs}"
    )


@pytest.mark.timeout(120)
def test_a_fresh_step_has_a_process_that_did_nothing_before(store: Store, tiny: Tiny) -> None:
    tiny.go_on()
    steps = [heavy("a"), replace(heavy("b", "a"), fresh=True), heavy("c", "b")]
    (outcome,) = run(store, plan("x", *steps), jobs=1)
    assert outcome.error is None
    paths = [outcome.results[name].stored.path / "count.json" for name in "abc"]
    told = [json.loads(path.read_text("utf-8")) for path in paths]
    assert [calls for calls, _ in told] == [1, 1, 2]
    assert told[0][1] == told[2][1] != told[1][1]
    (again,) = run(store, plan("x", *(replace(one, fresh=False) for one in steps)))
    assert again.all_cached, "it is no part of the key"


class Told(Silent):
    """Keeps what it hears, and does something when the step ``upon`` has ended."""

    def __init__(self, upon: str = "", then: Callable[[], object] = lambda: None) -> None:
        self.heard: list[str] = []
        self.going = self.most = 0
        self._upon, self._then = upon, then

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None:
        self.heard.append(f"started {label}")
        self.going += 1
        self.most = max(self.most, self.going)

    def finished(self, label: str, result: Result) -> None:
        self.heard.append(f"finished {label}")
        self.going -= not result.cached
        if label == self._upon:
            self._then()

    def failed(self, label: str, error: PhipipeError) -> None:
        self.heard.append(f"failed {label}")

    def installing(self, toolchain: str) -> None:
        self.heard.append(f"installing {toolchain}")

    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None:
        self.heard.append(f"{'lacks' if error else 'has'} {toolchain}")


@pytest.mark.timeout(120)
def test_while_a_toolchain_is_installed_steps_that_do_not_need_it_go_on(
    store: Store, tiny: Tiny
) -> None:
    told = Told("b: z", tiny.go_on)  # the installation would not end otherwise
    first = plan("a", heavy("h"), step("x", "h"))
    second = plan("b", step("x"), step("y", "x"), step("z", "y"), heavy("h", n=2))
    done = run(store, first, second, jobs=1, listener=told)
    assert [outcome.error for outcome in done] == [None, None]
    assert told.heard[0] == "installing tiny"
    assert (
        told.heard.index("finished b: z")
        < told.heard.index("has tiny")
        < told.heard.index("started a: h")
    )
    assert told.heard.count("installing tiny") == told.heard.count("has tiny") == tiny.builds() == 1
    again = Told()
    assert all(
        outcome.all_cached for outcome in run(Store(store.root), first, second, listener=again)
    )
    assert "installing tiny" not in again.heard


@pytest.mark.timeout(120)
def test_a_toolchain_that_cannot_be_installed_fails_those_that_need_it_alone(
    store: Store, tiny: Tiny
) -> None:
    (tiny.folder / "fail").touch()
    told = Told("b: x", tiny.go_on)
    bad, good, late = (
        plan("a", heavy("h")),
        plan("b", step("x", n=1)),
        plan("c", step("x", n=2), heavy("h", "x")),
    )
    done = run(store, bad, good, late, listener=told)
    assert [type(outcome.error) for outcome in done] == [ToolchainError, type(None), ToolchainError]
    assert sorted(line for line in told.heard if line.startswith("failed")) == [
        "failed a: h",
        "failed c: h",
    ]
    assert (told.heard.count("installing tiny"), tiny.builds()) == (1, 1)


@pytest.mark.timeout(120)
def test_a_measurement_waits_for_an_installation_to_end(store: Store, tiny: Tiny) -> None:
    told = Told("x", tiny.go_on)
    (outcome,) = run(store, plan("a", heavy("h"), step("m", alone=True), step("x")), listener=told)
    assert outcome.error is None
    assert told.heard.index("has tiny") < told.heard.index("started m")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("jobs", [1, 4])
def test_an_interruption_ends_an_installation_at_once(store: Store, tiny: Tiny, jobs: int) -> None:
    def interrupt() -> None:
        wait_until(lambda: tiny.builds() == 1, "the installation")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, plan("a", heavy("h"), step("x")), jobs=jobs, listener=Told("x", interrupt))
    assert tiny.processes() == []
    assert tiny.left_overs() == []


@pytest.mark.timeout(120)
def test_an_installation_that_nobody_waits_for_any_more_is_given_up(
    store: Store, tiny: Tiny
) -> None:
    plans = [plan("a", heavy("h")), plan("b", step("x", fail=True))]
    done = attempt(plans, store, Settings.read(), Silent(), Manner(jobs=2, fail_fast=True))
    assert [type(outcome.error) for outcome in done] == [Skipped, StepFailed]
    assert tiny.processes() == []
    assert tiny.left_overs() == []


@pytest.mark.timeout(120)
def test_a_worker_is_kept_as_long_as_steps_of_its_toolchain_are_to_come(
    store: Store, tiny: Tiny
) -> None:
    tiny.go_on()
    steps = heavy("one"), step("between", "one"), heavy("two", "between")
    (outcome,) = run(store, plan("a", *steps), jobs=1)
    folders = [outcome.results[name].stored.path for name in ("one", "two")]
    found = [json.loads((folder / "count.json").read_text("utf-8")) for folder in folders]
    assert [calls for calls, _ in found] == [1, 2], "heavy imports happen once a run"
    assert found[0][1] == found[1][1]


class Elsewhere(Bench):
    """As if another machine did the steps."""

    def here(self, step: Step) -> bool:
        return False


def test_other_machines_are_asked_for_so_many_steps_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "AWAY", 3)
    told = Told()
    made = plan("a", *(step(f"s{i}") for i in range(10)))
    (outcome,) = attempt([made], store, Settings.read(), told, Manner(jobs=1, engine=Elsewhere))
    assert outcome.error is None
    assert told.most == 3


def test_a_graph_is_built_once_a_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    identify = nodes._node

    def counted(one: Step, own: dict[str, str]) -> nodes.Node:
        built.append(one.name)
        return identify(one, own)

    monkeypatch.setattr(nodes, "_node", counted)
    plans = [plan("a", step("x"), step("y", "x")), plan("b", step("x"), step("z", "x"))]
    assert labels(plans) == ["x", "a: y", "b: z"]
    assert all(outcome.error is None for outcome in run(store, *plans))
    assert all(outcome.all_cached for outcome in run(Store(store.root), *plans))
    assert sorted(built) == ["x", "x", "y", "z"]
    assert len(graph(plans[:1]).nodes) == 2
    assert all(node.result is None for node in graph(plans).nodes.values()), (
        "a run keeps what it finds to itself"
    )

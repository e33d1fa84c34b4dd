"""Order of steps: what is shared runs once, what is independent runs side by side, what fails stops its own build."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe import executor, schedule
from phipipe.backends.base import Outside, Step
from phipipe.errors import Interrupted, PhipipeError, Skipped, StepFailed, StepKilled
from phipipe.executor import Result
from phipipe.plan import Plan
from phipipe.schedule import attempt, graph
from phipipe.settings import Settings
from phipipe.show import Silent
from phipipe.store import Store

CALLS: list[tuple[str, float, float]] = []
GUARD = threading.Lock()
GATE = threading.Event()


def work(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A light step: waits, fails or writes, as ``params`` say; notes when it ran."""
    start = time.monotonic()
    if params.get("fail"):
        raise StepFailed(f"{params['name']} cannot")
    if params.get("bug"):
        raise ZeroDivisionError
    time.sleep(params.get("seconds", 0.0))
    (out / "name.txt").write_text(params["name"])
    with GUARD:
        CALLS.append((params["name"], start, time.monotonic()))


def step(
    name: str, *needs: str, after: tuple[str, ...] = (), memory_bytes: int = 0, alone: bool = False, **params: Any
) -> Step:
    return Step(
        name=name,
        runs="test_schedule:work",
        version=1,
        needs={n: n for n in needs},
        after=after,
        params={"name": name, **params},
        memory_bytes=memory_bytes,
        measurement=alone,
    )


def plan(name: str, *steps: Step) -> Plan:
    build: Any = SimpleNamespace(name=name, recipe=SimpleNamespace(backend=name[0]))
    made: Any = Plan(build=build, device=None, api="cpu", on_target="false", steps=steps)  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    import sys

    monkeypatch.setitem(sys.modules, "test_schedule", sys.modules[__name__])


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def run(store: Store, *plans: Plan, jobs: int = 4, listener: Any = None) -> list[executor.Outcome]:
    return attempt(plans, store, Settings.read(), listener or Silent(), None, jobs)


def names() -> list[str]:
    return [name for name, _, _ in CALLS]


def overlap(a: str, b: str) -> bool:
    times = {name: (start, end) for name, start, end in CALLS}
    return times[a][0] < times[b][1] and times[b][0] < times[a][1]


def test_what_builds_share_runs_once(store: Store) -> None:
    shared = step("source")
    done = run(store, plan("a", shared, step("x", "source")), plan("b", shared, step("y", "source")))
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
    run(store, plan("a", step("x", seconds=0.1), step("m", seconds=0.1, alone=True), step("y", seconds=0.1)))
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
        store, plan("a", shared, step("x", "source")), plan("b", shared, step("y", "source")), plan("c", step("z"))
    )
    assert [type(outcome.error) for outcome in done] == [StepFailed, StepFailed, type(None)]
    assert names() == ["z"]


def test_a_failure_after_order_alone_counts_too(store: Store) -> None:
    (outcome,) = run(store, plan("a", step("check", fail=True), step("x", after=("check",))))
    assert isinstance(outcome.error, StepFailed)
    assert names() == []


def test_no_memory_in_one_worker_leaves_the_others_alone(store: Store, ort_python: Path) -> None:
    def in_worker(what: str, **params: Any) -> Step:
        return replace(step("work", **params), toolchain="onnxruntime", runs=f"steps_cheap:{what}")

    limits = {**os.environ, "PHIPIPE_WORKER_PATH": str(Path(__file__).parent), "PHIPIPE_MEMORY_LIMIT_GIB": "0.25"}
    plans = [plan("a", in_worker("allocate_until_killed")), plan("b", in_worker("count"))]
    greedy, modest = attempt(plans, store, Settings.read(limits), Silent(), None, 2)
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
    assert schedule.labels(plans) == ["source", "a: x", "b: x"]
    assert schedule.labels(plans[:1]) == ["source", "x"]
    both = [plan("a1", shared, step("x", "source")), plan("a2", shared, step("x", "source")), plan("b", shared)]
    assert schedule.labels(both) == ["source", "a: x"]


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
def test_any_graph_runs_every_step_once_after_its_inputs(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    CALLS.clear()
    count = data.draw(st.integers(1, 8))
    made: list[Step] = []
    for i in range(count):
        needs = data.draw(st.lists(st.sampled_from([s.name for s in made]), unique=True)) if made else []
        made.append(step(f"s{i}", *needs, alone=data.draw(st.booleans())))
    root = tmp_path_factory.mktemp("graph")
    (outcome,) = attempt([plan("a", *made)], Store(root), Settings.read(), Silent(), None, data.draw(st.integers(1, 4)))
    assert outcome.error is None
    assert sorted(names()) == sorted(s.name for s in made)
    place = {name: i for i, name in enumerate(names())}
    assert all(place[needed] < place[s.name] for s in made for needed in s.needs)


def test_bookkeeping_grows_with_the_steps_not_with_their_square(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    has_inputs = schedule._Run._has_inputs

    def counted(self: schedule._Run, node: schedule.Node) -> bool:
        nonlocal asked
        asked += 1
        return has_inputs(self, node)

    monkeypatch.setattr(schedule._Run, "_has_inputs", counted)
    took = []
    for builds in (10, 40):
        asked = 0
        shared = step("source")
        done = run(store, *(plan(f"b{i}", shared, step("x", "source", n=i), step("y", "x")) for i in range(builds)))
        assert all(outcome.error is None for outcome in done)
        took.append(asked)
    assert took[1] < 6 * took[0]


def test_after_a_failure_nothing_more_is_started_if_that_is_wished(store: Store) -> None:
    plans = [plan("bad", step("x", fail=True)), *(plan(f"b{i}", step(f"s{i}", seconds=0.05)) for i in range(5))]
    done = attempt(plans, store, Settings.read(), Silent(), None, 1, fail_fast=True)
    assert isinstance(done[0].error, StepFailed)
    assert all(isinstance(outcome.error, Skipped) for outcome in done[1:])
    assert not names()


def test_default_jobs_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(cores: int, gib: int) -> int:
        monkeypatch.setattr("phipipe.hardware.cores", lambda: cores)
        monkeypatch.setattr("phipipe.hardware.memory_bytes", lambda: gib * 2**30)
        return schedule.default_jobs()

    assert [machine(1, 64), machine(2, 24), machine(16, 64), machine(64, 256), machine(16, 7)] == [2, 2, 8, 8, 1]


def test_threads_are_shared_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("phipipe.hardware.cores", lambda: 16)
    assert [executor.threads_per_worker(jobs) for jobs in (1, 2, 4, 8, 32)] == [None, 8, 4, 2, 1]
    monkeypatch.setattr("phipipe.hardware.cores", lambda: 4)  # a container's share, which runtimes do not see
    assert [executor.threads_per_worker(jobs) for jobs in (1, 2, 8)] == [4, 2, 1]


def test_a_stopped_bench_starts_nothing(store: Store, torch_python: Path) -> None:
    bench = executor.Bench(store, Settings.read(), print)
    bench.stop()
    one = replace(step("x"), toolchain="torch")
    waiting = bench.look(one, {}, {})
    assert isinstance(waiting, executor.Waiting)
    with pytest.raises(Interrupted):
        bench.make(waiting, {}, lambda *report: None)


def test_outcomes_of_failed_builds_are_errors_of_ours(store: Store) -> None:
    (outcome,) = run(store, plan("a", step("x", fail=True)))
    assert isinstance(outcome.error, PhipipeError)
    assert json.dumps(outcome.load("x", "name.txt")) == "null"

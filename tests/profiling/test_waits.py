"""What steps wait for, as a run writes it down and its profile reads it: the run's own bookkeeping
on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import kept_runs
from testing.kept_runs import Drawn, Kept
from testing.plans import plan, step

from phipipe.cli import profiles
from phipipe.cli.listeners import Silent
from phipipe.execution import dispatch, events, past_runs
from phipipe.execution.manner import Manner
from phipipe.execution.past_runs import Run
from phipipe.output.profiled import Profile, Timed, Wait
from phipipe.profiling import words
from phipipe.profiling.profile import profile
from phipipe.settings import Settings
from phipipe.store.store import Store

NEW = ("cpu_seconds", "read_bytes", "written_bytes", "needs", "waits")
PACE = st.integers(0, 500).map(lambda tenths: tenths / 10)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Runs of up to a dozen steps: any graph, sizes, measurements, cached ones."""
    drawn = [
        Drawn(
            seconds=draw(PACE),
            needs=tuple(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else (),
            memory_bytes=draw(st.sampled_from([0, 40, 70, 200])),
            alone=draw(st.integers(0, 5)) == 0,
            cached=draw(st.integers(0, 4)) == 0,
        )
        for i in range(draw(st.integers(1, 12)))
    ]
    return Kept(drawn, jobs=draw(st.integers(1, 4))).run()


def by_name(made: Profile) -> dict[str, Timed]:
    return {one.name: one for one in made.steps}


def end(one: Timed) -> float:
    return one.start_seconds + one.seconds


@given(runs())
def test_the_critical_path_fills_the_run_and_has_no_two_steps_at_once(run: Run) -> None:
    made = profile(run)
    if all(one.state == "cached" for one in made.steps):
        assert made.critical_path is None
        return
    assert made.critical_path is not None
    assert made.critical_seconds is not None
    path = [by_name(made)[name] for name in made.critical_path]
    assert made.critical_seconds == pytest.approx(sum(one.seconds for one in path))
    assert made.critical_seconds <= made.span_seconds + 0.001
    assert made.critical_seconds == pytest.approx(made.span_seconds, abs=0.01)
    assert end(path[-1]) == pytest.approx(max(map(end, made.steps)))
    assert all(end(before) <= after.start_seconds + 0.001 for before, after in pairwise(path))


@given(runs())
def test_a_wait_names_a_step_that_ended_when_the_wait_did(run: Run) -> None:
    made = profile(run)
    for one in made.steps:
        at = one.start_seconds
        for wait in reversed(one.waits or []):
            assert wait.step is not None
            assert end(by_name(made)[wait.step]) == pytest.approx(at, abs=0.002)
            at -= wait.seconds
            assert at >= -0.002


@given(runs())
def test_what_ran_at_once_is_part_of_what_ran(run: Run) -> None:
    made = profile(run)
    total = sum(one.seconds for one in made.steps)
    assert 0 <= made.overlap_seconds <= made.busy_seconds <= made.span_seconds + 0.001
    assert made.busy_seconds + made.overlap_seconds <= total + 0.01


def test_many_steps_that_were_cached_in_one_moment_took_no_time() -> None:
    made = profile(Kept([Drawn(0, cached=True)] * 12).run())
    assert (made.busy_seconds, made.overlap_seconds, made.critical_path) == (0.0, 0.0, None)
    assert words.NOTHING_DONE in profiles.text(made)


def only(*drawn: Drawn, jobs: int = 2) -> dict[str, Timed]:
    return by_name(profile(Kept(drawn, jobs=jobs).run()))


def waits(one: Timed) -> list[tuple[str, str | None, float]]:
    return [(wait.cause, wait.step, wait.seconds) for wait in one.waits or []]


def test_a_result_is_waited_for_from_when_all_others_are_there() -> None:
    found = only(Drawn(5), Drawn(30), Drawn(1, needs=(0, 1)), Drawn(1, needs=(0,)))
    assert waits(found["s2"]) == [("result", "s1", 25.0)]
    assert waits(found["s3"]) == []  # it follows its only input at once


def test_a_slot_memory_and_a_measurement_are_waited_for_by_name() -> None:
    assert waits(only(Drawn(5), Drawn(7), jobs=1)["s1"]) == [("slot", "s0", 5.0)]
    big = only(Drawn(5, memory_bytes=70), Drawn(7, memory_bytes=70))
    assert waits(big["s1"]) == [("memory", "s0", 5.0)]
    alone = only(Drawn(5), Drawn(7, alone=True), Drawn(9, needs=(0,)))
    assert waits(alone["s1"]) == [("alone", "s2", 14.0)]
    quiet = only(Drawn(5, alone=True), Drawn(2, alone=True))
    assert waits(quiet["s1"]) == [("alone", "s0", 5.0)]


def test_a_path_goes_through_what_was_waited_for_and_not_only_through_results() -> None:
    made = profile(Kept([Drawn(5), Drawn(30), Drawn(4, needs=(0,))], jobs=1).run())
    assert (made.critical_path, made.critical_seconds) == (["s0", "s1", "s2"], 39.0)
    beside = profile(Kept([Drawn(5), Drawn(30), Drawn(4, needs=(0,))]).run())
    assert beside.critical_path == ["s1"]
    assert (beside.busy_seconds, beside.overlap_seconds) == (30.0, 9.0)


def test_a_cached_step_leads_the_path_on_to_what_ended_before_it() -> None:
    drawn = [Drawn(5), Drawn(1, needs=(0,), cached=True), Drawn(3, needs=(1,))]
    assert profile(Kept(drawn).run()).critical_path == ["s0", "s2"]


def installed() -> Run:
    """A step has waited for its toolchain, which was installed from the begin."""
    told = Kept([])
    told.tell("run_started", command="run", builds=["a"], pid=1, process_started=0.0)
    told.tell("toolchain_started", toolchain="torch")
    told.tell("step_started", step="x", why="w", needs=[], waits=[])
    told.now = 4.0
    told.tell("step_finished", step="x", cached=False, key="ab" * 32, seconds=4.0)
    told.now = 60.0
    told.tell("toolchain_finished", toolchain="torch", seconds=60.0)
    wait = {"for": "toolchain", "step": None, "toolchain": "torch", "seconds": 56.0}
    told.tell("step_started", step="y", why="w", needs=["x"], waits=[wait])
    told.now = 70.0
    told.tell("step_failed", step="y", exit_code=5, message="it cannot")
    told.tell("run_finished", exit_code=5, seconds=70.0)
    return kept_runs.kept(told.events, 70.0)


def test_an_installation_can_be_on_the_path() -> None:
    made = profile(installed())
    assert (made.critical_path, made.critical_seconds) == (["torch", "y"], 70.0)
    assert made.busy_seconds == 14.0  # steps alone
    assert [one.state for one in made.steps] == ["done", "done", "failed"]
    assert waits(made.steps[2]) == [("toolchain", None, 56.0)]
    assert "toolchain torch" in profiles.text(made)


def test_a_run_that_goes_on_is_told_up_to_its_last_event() -> None:
    run = kept_runs.usual()
    places = [i for i, event in enumerate(run.events) if event["event"] == "step_started"]
    cut = replace(run, events=run.events[: places[2] + 2], seconds=None, state="running")
    made = profile(cut)
    assert {"unfinished"} <= {one.state for one in made.steps}
    assert all(end(one) <= made.span_seconds + 0.001 for one in made.steps)


def test_a_clock_that_is_set_back_takes_no_time() -> None:
    run = kept_runs.usual()
    told = [dict(event) for event in run.events]
    told[len(told) // 2]["time"] = "2001-01-01T00:00:00.000Z"
    made = profile(replace(run, events=tuple(told)))
    assert all(one.seconds >= 0 for one in made.steps)
    assert made.span_seconds == profile(run).span_seconds


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]),
    st.lists(st.dictionaries(st.sampled_from(["for", "step", "seconds"]), st.text(max_size=3))),
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([*NEW, "time", "step", "machine"]), JUNK)
    )
)
def test_whatever_somebody_writes_into_events_is_shown_or_left_out(
    changes: Sequence[tuple[int, str, Any]],
) -> None:
    run = kept_runs.usual()
    told = [dict(event) for event in run.events]
    for place, name, value in changes:
        told[place % len(told)][name] = value
    made = profile(replace(run, events=tuple(told)))
    assert profiles.text(made)
    assert all(one.seconds >= 0 for one in made.steps)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("result", "x"),
        ("memory", "memory of x"),
        ("slot", "slot of x"),
        ("alone", "x (to be alone)"),
    ],
)
def test_a_wait_in_words(cause: Any, told: str) -> None:
    wait = Wait(cause=cause, step="x", toolchain=None, seconds=1.0)
    assert words.reasons([wait]) == told
    assert words.reasons([wait, wait]) == f"{told} 1.0 s, {told} 1.0 s"


def test_a_run_records_what_its_steps_need_and_wait_for(own_cache: Path) -> None:
    steps = (step("slow", seconds=0.4), step("fast"), step("end", "slow", "fast"))
    plans = [plan("a", *steps, step("m", "fast", alone=True))]
    with events.recorded(own_cache, "run", ["a"], Silent()) as recorder:
        own = Settings(cache=own_cache, toolchains=own_cache)
        dispatch.attempt(plans, Store(own_cache), own, recorder, Manner(jobs=2))
    made = by_name(profile(past_runs.find(own_cache, "latest")))
    assert [(wait.cause, wait.step) for wait in made["end"].waits or []] == [("result", "slow")]
    assert [wait.cause for wait in made["m"].waits or []] == ["alone"]
    assert all(one.cpu_seconds is not None for one in made.values())

"""Where a run's time went: what the events tell, held to schedules that were made up."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.plans import plan, recorded, step
from testing.shell import Run as Shell

from phipipe.execution import past_runs
from phipipe.execution.past_runs import Run
from phipipe.profiling import page, words
from phipipe.profiling.profile import profile

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
MIB = 2**20


def run_of(*events: tuple[float, str, dict[str, Any]]) -> Run:
    """A recorded run with these events: seconds after the begin, kind, what else it says."""
    told = [
        {"event": kind, "time": (BEGIN + datetime.timedelta(seconds=at)).isoformat(), **rest}
        for at, kind, rest in events
    ]
    return Run(
        id="r", command="run", started=told[0]["time"], builds=("a",), state="ok", exit_code=0,
        seconds=events[-1][0], events=tuple(told),
    )  # fmt: skip


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[str, list[str], float, float]]:
    """Steps as a run with some slots does them: name, needs, start and end in seconds."""
    slots = draw(st.integers(1, 3))
    free, ends = [0.0] * slots, dict[str, float]()
    made = []
    for i in range(draw(st.integers(1, 9))):
        name = f"s{i}"
        needs = sorted(draw(st.sets(st.sampled_from(sorted(ends)), max_size=3))) if ends else []
        slot = min(range(slots), key=free.__getitem__)
        start = max([free[slot], *(ends[need] for need in needs)])
        ends[name] = free[slot] = start + draw(st.integers(1, 50))
        made.append((name, needs, start, ends[name]))
    return made


def events_of(made: Sequence[tuple[str, list[str], float, float]]) -> Run:
    found: list[tuple[float, int, str, dict[str, Any]]] = []
    for name, needs, start, end in made:
        by_end = {other: until for other, _, _, until in made if until <= start}
        waits = []
        if start > max([0.0, *(by_end[need] for need in needs)]):
            blocker = next(other for other, until in by_end.items() if until == start)
            waits = [{"for": "slot", "step": blocker, "toolchain": None, "seconds": start}]
        found += [
            (start, 1, "step_started", {"step": name, "needs": needs, "waits": waits}),
            (end, 0, "step_finished", {"step": name, "cached": False, "seconds": end - start}),
        ]
    told = [(at, kind, rest) for at, _, kind, rest in sorted(found, key=lambda one: one[:2])]
    return run_of((0.0, "run_started", {}), *told, (told[-1][0], "run_finished", {}))


@settings(max_examples=200, deadline=None)
@given(schedules())
def test_the_critical_path_is_as_long_as_the_run(
    made: list[tuple[str, list[str], float, float]],
) -> None:
    """Where nothing but steps takes time, the path leads from the begin to the end without a gap,
    and no two of its steps overlap."""
    found = profile(events_of(made))
    times = {name: (start, end) for name, _, start, end in made}
    assert found.critical_path
    path = [times[name] for name in found.critical_path]
    assert path[0][0] == 0.0
    assert path[-1][1] == found.span_seconds == max(end for *_, end in made)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(path))
    assert found.critical_seconds == found.span_seconds
    assert {one.name for one in found.steps if one.critical} == set(found.critical_path)


@settings(max_examples=200, deadline=None)
@given(schedules())
def test_what_ran_at_once_is_counted_second_by_second(
    made: list[tuple[str, list[str], float, float]],
) -> None:
    found = profile(events_of(made))
    end = int(found.span_seconds)
    going = [sum(start <= at < until for *_, start, until in made) for at in range(end)]
    assert found.busy_seconds == sum(n > 0 for n in going)
    assert found.overlap_seconds == sum(n > 1 for n in going)
    assert {one.name: one.seconds for one in found.steps} == {
        name: until - start for name, _, start, until in made
    }


def one_step(**finished: Any) -> Run:
    wait = {"for": "memory", "step": "b", "toolchain": None, "seconds": 2.5}
    return run_of(
        (0.0, "run_started", {}),
        (3.0, "step_started", {"step": "a", "needs": [], "waits": [wait]}),
        (9.0, "step_finished", {"step": "a", "cached": False, **finished}),
        (9.0, "run_finished", {"cpu_seconds": 11.0, "read_bytes": MIB, "written_bytes": 2 * MIB}),
    )


def test_a_step_tells_what_it_spent_and_waited_for() -> None:
    found = profile(
        one_step(seconds=5.5, cpu_seconds=10.25, written_bytes=MIB, peak_anon_bytes=3 * MIB)
    )
    (one,) = found.steps
    assert (one.start_seconds, one.seconds, one.work_seconds) == (3.0, 6.0, 5.5)
    assert (one.cpu_seconds, one.read_bytes, one.written_bytes) == (10.25, None, MIB)
    assert one.waits is not None
    assert [(w.cause, w.step, w.seconds) for w in one.waits] == [("memory", "b", 2.5)]
    assert (found.cpu_seconds, found.read_bytes, found.written_bytes) == (11.0, MIB, 2 * MIB)


@pytest.mark.parametrize("value", [-1, "many", True, float("inf"), 10**400, None, [1]])
def test_a_figure_that_somebody_wrote_into_the_file_is_unknown(value: Any) -> None:
    (one,) = profile(one_step(cpu_seconds=value, written_bytes=value)).steps
    assert (one.cpu_seconds, one.written_bytes) == (None, None)


def test_an_older_run_shows_with_dashes(own_cache: Path, run: Shell) -> None:
    recorded(own_cache, plan("a", step("x"), step("y", "x")))
    (file,) = (own_cache / "runs").glob("*/events.jsonl")
    older = []
    for line in file.read_text("utf-8").splitlines():
        event = json.loads(line)
        for name in ("needs", "waits", "cpu_seconds", "read_bytes", "written_bytes"):
            event.pop(name, None)
        older.append(json.dumps(event))
    file.write_text("\n".join(older) + "\n", "utf-8")
    found = profile(past_runs.find(own_cache, "latest"))
    assert found.critical_path is None
    assert [one.waits for one in found.steps] == [None, None]
    code, out, _ = run("runs", "show", "latest", "--profile")
    assert code == 0
    assert "an older phipipe made this run" in out


def test_a_real_run_is_shown_in_all_ways(own_cache: Path, run: Shell, tmp_path: Path) -> None:
    recorded(own_cache, plan("a", step("x", seconds=0.2), step("y", "x", seconds=0.1)))
    code, out, err = run("runs", "show", "latest", "--profile", "--page", tmp_path / "p.html")
    assert (code, err.strip()) == (0, f"page: {tmp_path / 'p.html'}")
    assert "x → y" in out
    told = json.loads(run("runs", "show", "latest", "--profile", "--json")[1])
    assert told["critical_path"] == ["x", "y"]
    assert [one["state"] for one in told["steps"]] == ["done", "done"]
    assert told["steps"][0]["seconds"] >= 0.2
    assert told["steps"][0]["cpu_seconds"] is not None
    text = (tmp_path / "p.html").read_text("utf-8")
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "<script" not in text


def test_names_on_the_page_are_text() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    made = run_of(
        (0.0, "run_started", {}),
        (0.0, "step_started", {"step": hostile, "needs": [], "waits": []}),
        (1.0, "step_finished", {"step": hostile, "cached": False}),
        (1.0, "run_finished", {}),
    )
    assert hostile not in page.render(profile(made))


def test_layers_that_several_steps_shared_are_told_of() -> None:
    """Of the one that read them, and of the one that got them."""
    first = {"step": "a", "read_bytes": 5 * MIB, "layers_read": 5, "layers_given": 0}
    second = {"step": "b", "read_bytes": MIB, "layers_read": 0, "layers_given": 5}
    begins = [(float(i), "step_started", {"step": "ab"[i], "needs": []}) for i in range(2)]
    ends = [(3.0, "step_finished", first), (4.0, "step_finished", second)]
    found = profile(run_of(*begins, *ends))
    assert [words.read(step) for step in found.steps] == [
        "5.0 MiB for several",
        "1.0 MiB + 5 layers",
    ]
    assert "5.0 MiB for several" in page.render(found)

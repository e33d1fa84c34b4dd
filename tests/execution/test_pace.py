"""How far a step is: its share, the time left at its own pace, and what is seen from outside."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.plans import plan, recorded, step

from phipipe import progress
from phipipe.cli.listeners import Lines, Silent
from phipipe.execution import event_words, events, watch
from phipipe.execution.pace import Pace
from phipipe.execution.watch import Expected, Watch
from phipipe.processes import bars
from phipipe.settings import Settings


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_follows_the_steps_own_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.heard(0, 100, "windows").words == "0 %"
    clock.now = 10.0
    heard = pace.heard(25, 100, "windows")
    assert (heard.share, heard.left_s) == (0.25, 30.0)
    assert heard.words == "25 %, about 30 s left"


def test_a_pace_begins_anew_with_what_is_counted() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.heard(0, 10, "files")
    clock.now = 100.0
    assert pace.heard(0, 500, "windows").left_s is None
    clock.now = 110.0
    assert pace.heard(100, 500, "windows").left_s == 40.0
    clock.now = 120.0
    assert pace.heard(200, 500, "windows (of the last layer)").left_s == 30.0


@given(st.lists(st.tuples(st.integers(-5, 50), st.integers(-5, 50)), max_size=20))
def test_whatever_a_step_says_its_share_is_one_and_its_time_no_less_than_none(
    said: list[tuple[int, int]],
) -> None:
    clock = Clock()
    pace = Pace(clock)
    for done, total in said:
        clock.now += 3.0
        heard = pace.heard(done, total, "windows")
        assert 0 <= heard.share <= 1
        assert heard.left_s is None or heard.left_s >= 0
        assert heard.words.startswith(f"{100 * heard.share:.0f} %")


def test_events_and_lines_say_share_and_time_left(tmp_path: Path) -> None:
    with events.recorded(tmp_path, "run", ["a"], Silent()) as recorder:
        recorder.progress("x", 30, 120, "windows")
    event = events.past_runs.find(tmp_path, "latest").events[1]
    assert (event["share"], event["total"]) == (0.25, 120)
    assert event_words.words(event) == "x  30 of 120 windows, 25 %"
    timed = {**event, "seconds_left": 90.0}
    assert event_words.words(timed) == "x  30 of 120 windows, 25 %, about 2 min left"
    old = {k: v for k, v in event.items() if k != "share"}  # of an earlier phipipe
    assert event_words.words(old) == "x  30 of 120 windows"
    stream = io.StringIO()
    Lines(4, stream).progress("x", 30, 120, "windows")
    assert stream.getvalue().strip() == "x     30 of 120 windows, 25 %"


def test_items_that_are_asked_for_tell_how_many_are_finished() -> None:
    heard: list[tuple[int, int, str]] = []
    with progress.listening(lambda *report: heard.append(report)):
        assert list(progress.each(["a", "b"], "files")) == ["a", "b"]
    assert heard == [(0, 2, "files"), (1, 2, "files"), (2, 2, "files")]


def watched(folder: Path, expected: Expected) -> list[tuple[int, int, str]]:
    heard: list[tuple[int, int, str]] = []
    own = Settings(cache=folder, toolchains=folder)
    Watch(folder, own, lambda *report: heard.append(report), expected).report()
    return heard


def test_a_silent_step_is_as_far_as_its_time_before_tells(tmp_path: Path) -> None:
    assert watched(tmp_path, Expected(seconds=120.0, output_bytes=2**30)) == [(0, 120, watch.TIME)]
    assert watched(tmp_path, Expected(seconds=1.0)) == []
    assert watched(tmp_path, Expected()) == []


def test_a_silent_step_that_never_ran_before_is_as_far_as_what_it_has_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"x" * 20 * 2**20)
    ((done, total, unit),) = watched(tmp_path, Expected(output_bytes=100 * 2**20))
    assert (done, total, unit) == (20, 100, watch.WRITTEN)
    (tmp_path / "out" / "b").write_bytes(b"x" * 90 * 2**20)
    ((done, _, _),) = watched(tmp_path, Expected(output_bytes=100 * 2**20))
    assert done == 95  # the end is the step's own to tell


def test_a_step_that_speaks_is_believed(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('[3, 9, "layers"]')
    assert watched(tmp_path, Expected(seconds=120.0)) == [(3, 9, "layers")]


class Bar:
    """What tqdm's bars have."""

    def __init__(self, n: object, total: object, unit: str = "it", desc: str | None = None) -> None:
        self.n, self.total, self.unit, self.desc = n, total, unit, desc


@pytest.mark.parametrize(
    ("bar", "said"),
    [
        (Bar(3, 32), (3, 32, "parts")),
        (Bar(3, 32, "layer", "Quantizing: "), (3, 32, "layer (Quantizing)")),
        (Bar(2**30, 2**31, "B"), (1024, 2048, "MiB")),
        (Bar(40, 32), (32, 32, "parts")),
        (Bar(3, None), None),
        (Bar(1, 2), None),
        (Bar("3", "many"), None),
        (object(), None),
    ],
)
def test_a_tools_bar_is_heard_where_it_knows_its_end(
    bar: object, said: tuple[int, int, str] | None
) -> None:
    assert bars.told(bar) == said


def test_a_run_without_progress_is_recorded_as_before(own_cache: Path) -> None:
    found = recorded(own_cache, plan("a", step("x")))
    assert not [event for event in found if event["event"] == "step_progress"]

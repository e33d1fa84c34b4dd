"""What a run leaves for those who watch it, and for those who come later."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from testing.plans import plan, recorded, step
from testing.shell import Run

from phipipe.cli.listeners import Lines, Silent
from phipipe.errors import Interrupted, PhipipeError, SourceError, StepFailed, ToolchainError
from phipipe.execution import event_words, events, past_runs


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in found if event["event"] == kind]


def test_every_step_starts_and_ends_under_one_run(own_cache: Path) -> None:
    stream = io.StringIO()
    found = recorded(own_cache, plan("a", step("x"), step("y", "x")), stream=stream)
    assert [event["event"] for event in found] == [
        "run_started",
        *["step_started", "step_finished"] * 2,
        "build_finished",
        "run_finished",
    ]
    assert len({event["run"] for event in found}) == 1
    assert [event["step"] for event in of_kind(found, "step_finished")] == ["x", "y"]
    assert all(
        event["seconds"] >= 0 and event["bytes"] > 0 for event in of_kind(found, "step_finished")
    )
    assert found == [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)


class Pieces(io.StringIO):
    """Keeps what each single write had."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_a_line_is_written_at_once(own_cache: Path) -> None:
    stream = Pieces()
    recorded(own_cache, stream=stream)
    assert stream.pieces
    for piece in stream.pieces:  # or another thread's line gets in between
        assert piece.endswith("}\n")
        json.loads(piece)


def test_a_second_run_says_what_was_cached(own_cache: Path) -> None:
    first = recorded(own_cache, plan("a", step("x")))
    second = recorded(own_cache, plan("a", step("x")))
    assert [event["cached"] for event in of_kind([*first, *second], "step_finished")] == [
        False,
        True,
    ]
    assert [one.state for one in past_runs.runs(own_cache)] == ["ok", "ok"]


def test_a_failure_is_the_steps_the_builds_and_the_runs(own_cache: Path) -> None:
    found = recorded(
        own_cache, plan("a", step("x"), step("y", "x", fail=True)), plan("b", step("z"))
    )
    (failed,) = of_kind(found, "step_failed")
    assert (failed["step"], failed["message"]) == ("a: y", "y cannot")
    built = {event["build"]: event for event in of_kind(found, "build_finished")}
    assert (built["a"]["ok"], built["a"]["exit_code"], built["b"]["ok"]) == (
        False,
        StepFailed.exit_code,
        True,
    )
    assert found[-1]["exit_code"] == StepFailed.exit_code
    assert past_runs.find(own_cache, "latest").state == "failed"


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (SourceError("no"), SourceError.exit_code, "failed"),
        (KeyboardInterrupt(), Interrupted.exit_code, "interrupted"),
        (Interrupted("stop"), Interrupted.exit_code, "interrupted"),
        (ZeroDivisionError(), 70, "failed"),
    ],
)
def test_what_ends_a_run_is_kept(
    own_cache: Path, error: BaseException, code: int, state: str
) -> None:
    with pytest.raises(type(error)), events.recorded(own_cache, "run", ["a"], Silent()):
        raise error
    found = past_runs.find(own_cache, "latest")
    assert (found.exit_code, found.state) == (code, state)


def left(cache: Path, started: Mapping[str, Any], rest: str = "") -> past_runs.Run:
    """A run that says no more after ``started``, but for ``rest``."""
    folder = cache / "runs" / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    first = {
        "event": "run_started",
        "time": "2026-01-01T00:00:00.000Z",
        "command": "run",
        "builds": ["a"],
        **started,
    }
    (folder / past_runs.FILE).write_text(json.dumps(first) + "\n" + rest, "utf-8")
    return past_runs.find(cache, "2026")


def test_a_process_that_was_killed_leaves_an_interrupted_run(own_cache: Path) -> None:
    process = psutil.Process()
    gone = left(
        own_cache,
        {"pid": process.pid, "process_started": process.create_time() - 1000},
        '{"event": "ste',
    )
    assert (gone.state, gone.seconds, len(gone.events)) == (
        "interrupted",
        None,
        1,
    )  # another process has its number


def test_a_process_that_is_there_is_running(own_cache: Path) -> None:
    process = psutil.Process()
    assert (
        left(own_cache, {"pid": process.pid, "process_started": process.create_time()}).state
        == "running"
    )


def test_old_runs_go(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 3)
    for i in range(5):
        with events.recorded(own_cache, "run", [str(i)], Silent()):
            pass
    assert [one.builds for one in past_runs.runs(own_cache)] == [("4",), ("3",), ("2",)]


def test_progress_is_not_written_for_every_window(own_cache: Path) -> None:
    with events.recorded(own_cache, "run", ["a"], Silent()) as recorder:
        for i in range(100):
            recorder.progress("x", i, 100, "windows")
        recorder.progress("y", 1, 100, "windows")
    found = of_kind(
        [dict(event) for event in past_runs.find(own_cache, "latest").events], "step_progress"
    )
    assert [event["step"] for event in found] == ["x", "y"]


def test_a_run_is_told_line_by_line(own_cache: Path) -> None:
    found = recorded(
        own_cache, plan("a", step("x"), step("y", "x", fail=True)), plan("b", step("z"))
    )
    told = [event_words.line(event).removeprefix(f"{event['time']}  ") for event in found]
    plain = [re.sub(r"\b[0-9a-f]{12}\b", "KEY", re.sub(r"\d+\.\d s", "N s", one)) for one in told]
    assert plain[0] == "run: a, b"
    assert sorted(plain[1:-1]) == [
        "a  failed (5): y cannot",
        "a: x  done    KEY  N s",
        "a: x  runs: first time",
        "a: y  failed (5): y cannot",
        "a: y  runs: first time",
        "b  built in N s",
        "b: z  done    KEY  N s",
        "b: z  runs: first time",
    ]
    assert plain[-1] == "ended with exit code 5 after N s"


STORED = {"event": "step_finished", "step": "x", "cached": True, "key": "ab" * 32}
TOOL = {"event": "toolchain_finished", "toolchain": "mlx", "seconds": 61.0}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "run_started", "command": "batch", "builds": []}, "batch: nothing"),
        (
            {"event": "step_progress", "step": "x", "done": 3, "total": 8, "unit": "windows"},
            "x  3 of 8 windows",
        ),
        (STORED, "x  cached  abababababab"),
        (STORED | {"shared": True}, "x  cached  abababababab  from the shared store"),
        (
            STORED | {"cached": False, "seconds": 2.5, "machine": "w1"},
            "x  done    abababababab  2.5 s, on w1",
        ),
        ({"event": "toolchain_started", "toolchain": "mlx"}, "installing toolchain `mlx`"),
        (TOOL, "toolchain `mlx` is ready after 61.0 s"),
        (TOOL | {"exit_code": 4}, "toolchain `mlx` failed (4) after 61.0 s"),
        ({"event": "note", "text": "a note"}, "a note"),
        ({"event": "error", "message": "it is full", "hint": "tidy"}, "it is full\n  try: tidy"),
        (
            {"event": "build_finished", "build": "a", "ok": True, "seconds": 9.0, "package": "p/a"},
            "a  built in 9.0 s  p/a",
        ),
        ({"event": "of a later version", "n": 1}, '{"event": "of a later version", "n": 1}'),
    ],
)
def test_an_event_in_words(event: dict[str, Any], words: str) -> None:
    assert event_words.words(event) == words


def test_a_run_that_is_not_there_is_said_so(run: Run) -> None:
    code, out, err = run("runs", "show", "nope")
    assert (code, out) == (SourceError.exit_code, "")
    assert "there is no run `nope`" in err
    assert "phipipe runs ls" in err
    assert "this cache has no record of a run" in run("runs", "show", "latest")[2]


def test_runs_are_listed_shown_and_told(run: Run, own_cache: Path) -> None:
    recorded(own_cache, plan("a", step("x"), step("y", "x", fail=True)))
    code, out, _ = run("runs", "ls")
    assert code == 0
    assert "failed" in out
    code, out, _ = run("runs", "show", "latest")
    assert "y cannot" in out
    code, out, _ = run("runs", "logs", "latest", "y", "--json")
    assert {event["step"] for event in json.loads(out)} == {"y"}
    code, out, _ = run("runs", "ls", "--json")
    (row,) = json.loads(out)
    assert (row["state"], row["exit_code"], row["builds"]) == (
        "failed",
        StepFailed.exit_code,
        ["a"],
    )


def test_as_json_nothing_else_is_said(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("name: broken\n", "utf-8")
    code, out, err = run("run", str(recipe), "--log-format", "json")
    assert (code, out) == (2, "")
    (event,) = [json.loads(line) for line in err.splitlines()]
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert "`device` is missing" in event["message"]
    _, _, err = run("run", str(recipe))  # and the next command is itself again
    assert err.startswith("error: ")


def test_an_error_without_a_hint_has_none() -> None:
    assert "hint" not in events.failure(PhipipeError("x"))


def test_notes_from_several_threads_stay_lines(own_cache: Path) -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.0005)  # another thread's turn
            return super().write(text)

    stream = Slow()
    with events.recorded(own_cache, "run", ["a"], Silent(), stream) as recorder:
        threads = [
            threading.Thread(target=lambda: [recorder.note("x") for _ in range(10)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(of_kind(told, "note")) == 80


def test_installations_are_events_and_lines(own_cache: Path) -> None:
    stream, shown = io.StringIO(), io.StringIO()
    with events.recorded(own_cache, "run", ["a"], Lines(8, shown), stream) as recorder:
        recorder.installing("torch")
        recorder.installed("torch", 12.34, None)
        recorder.installed("mlx", 0.5, ToolchainError("no index answers", hint="check it"))
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    (began,), (fine, failed) = (
        of_kind(told, "toolchain_started"),
        of_kind(told, "toolchain_finished"),
    )
    assert event_words.words(began) == "installing toolchain `torch`"
    assert event_words.words(fine) == "toolchain `torch` is ready after 12.3 s"
    assert (failed["exit_code"], failed["kind"], failed["hint"]) == (
        4,
        "ToolchainError",
        "check it",
    )
    assert event_words.words(failed) == "toolchain `mlx` failed (4) after 0.5 s"
    assert shown.getvalue().splitlines() == [
        "  toolchain `torch` is ready (12.3 s)",
        "  toolchain `mlx` could not be installed (0.5 s)",
    ]

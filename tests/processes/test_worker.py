"""How steps end, and that nothing of theirs outlives us: real children, real signals, real
limits."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.clock import within
from testing.places import TESTS
from testing.workers import Bench, family, gone, posix

from phipipe.errors import (
    GateFailed,
    PhipipeError,
    SourceError,
    StepFailed,
    StepKilled,
    StoreError,
    ToolchainError,
)
from phipipe.execution.process import Outcome, Request

Run = Callable[..., Outcome]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.worker.close()


def test_a_worker_serves_successive_steps_with_its_imports_kept(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for expected in (1, 2, 3):
        bench("count")
        assert json.loads((bench.out / "count.json").read_text()) == [expected, bench.worker.pid]


def test_a_steps_own_failure_is_raised_here_with_its_hint(bench: Bench) -> None:
    with pytest.raises(GateFailed) as caught:
        bench("fail_a_gate")
    assert "`fail_a_gate`" in caught.value.message
    assert "`kld_mean` is 0.3" in caught.value.message
    assert caught.value.hint == "use int8"


def test_any_other_failure_names_its_log_which_has_all_that_was_printed(bench: Bench) -> None:
    with pytest.raises(StepFailed) as caught:
        bench("fail")
    assert "ValueError: cannot go on" in caught.value.message
    log = Path(str(caught.value.hint).rpartition("log: ")[2].strip())
    assert "the tensor is crooked" in log.read_text("utf-8")
    assert "Traceback" in log.read_text("utf-8")


def test_the_parent_lives_on_after_every_ending(bench: Bench) -> None:
    for step, params, kind in (
        ("kill_itself", {"signal": 9}, StepKilled),
        ("exit_at_once", {"code": 137}, StepKilled),
        ("out_of_memory", {}, StepKilled),
        ("crash", {}, StepKilled),
        ("import_one", {"module": "no_such_package_at_all"}, ToolchainError),
        ("raise_os_error", {"errno": errno.ENOSPC}, StoreError),
    ):
        with pytest.raises(PhipipeError) as caught:
            bench(step, **params)
        assert isinstance(caught.value, kind), step
        assert step in caught.value.message or kind is ToolchainError
        assert caught.value.hint
    bench("count")


@posix
def test_killed_at_a_high_point_of_memory_says_so(bench: Bench) -> None:
    with pytest.raises(StepKilled) as caught:
        bench("kill_itself", signal=9)
    assert "SIGKILL" in caught.value.message
    assert "GiB" in caught.value.message
    assert "memory" in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("limit", "step", "params"),
    [
        ("PHIPIPE_MEMORY_LIMIT_GIB", "allocate_until_killed", {}),
        ("PHIPIPE_MEMORY_LIMIT_GIB", "allocate_in_child", {"mib": 400}),
        ("PHIPIPE_STEP_TIMEOUT_S", "work", {"seconds": 60}),
        ("PHIPIPE_IDLE_TIMEOUT_S", "sleep", {"seconds": 60}),
    ],
)
def test_a_limit_ends_the_step_within_seconds_and_names_itself(
    tmp_path: Path, limit: str, step: str, params: dict[str, Any]
) -> None:
    made = Bench(tmp_path, **{limit: "0.25" if "MEMORY" in limit else "1"})
    with within(20), pytest.raises(StepKilled, match=limit):
        made(step, **params)
    made("count")
    made.worker.close()


@posix
def test_children_that_ignore_sigterm_go_too(tmp_path: Path) -> None:
    made = Bench(tmp_path, PHIPIPE_STEP_TIMEOUT_S="3")
    with pytest.raises(StepKilled, match="PHIPIPE_STEP_TIMEOUT_S"):
        made("spawn", inputs={"pids": tmp_path / "pids.json"})
    pids = family(tmp_path / "pids.json")
    assert len(pids) >= 4
    assert gone(pids)
    made.worker.close()


PARENT = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from testing.workers import Bench
def stop(signum, frame):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
bench = Bench(Path(sys.argv[2]))
inputs = {"pids": Path(sys.argv[2]) / "pids.json"}
bench(sys.argv[3], inputs=inputs, seconds=300, hold=sys.argv[4] == "hold")
"""


ENDINGS = [
    (signal.SIGINT, "", 2),
    (signal.SIGTERM, "", 2),
    (signal.Signals(9), "", 8),
    (signal.Signals(9), "hold", 3),
]


@pytest.mark.full
@posix
@pytest.mark.crash
@pytest.mark.parametrize(("number", "hold", "trials"), ENDINGS)
def test_nothing_outlives_a_parent_however_it_ends(
    tmp_path: Path, number: int, hold: str, trials: int
) -> None:
    for trial in range(trials):
        folder = tmp_path / str(trial)
        folder.mkdir()
        command = [sys.executable, "-c", PARENT, str(TESTS), str(folder), "spawn", hold]
        parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=TESTS.parent)
        pids = family(folder / "pids.json")
        parent.send_signal(number)
        assert gone([parent.pid, *pids]) or parent.poll() is not None
        assert gone(pids), f"orphans in trial {trial}"
        parent.wait(10)


def test_no_secret_reaches_a_step_its_arguments_or_its_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, "canary-3141")
    bench("environment")
    told = (bench.out / "environment.json").read_text("utf-8")
    assert '"HF_HUB_OFFLINE": "1"' in told
    everything = b"".join(p.read_bytes() for p in bench.folder.rglob("*") if p.is_file())
    assert b"canary-3141" not in everything


def test_no_pickle_is_loaded(bench: Bench) -> None:
    with pytest.raises(SourceError, match="pickle"):
        bench("unpickle")
    assert not (bench.out / "canary").exists()


@pytest.mark.parametrize("how", [{}, {"resolve": True}, {"datagram": True}])
def test_no_step_leaves_this_machine(bench: Bench, how: dict[str, bool]) -> None:
    with pytest.raises(StepFailed, match="network"):
        bench("connect", host="192.0.2.1", port=9, **how)


def test_a_loopback_server_can_be_reached(bench: Bench) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        bench("connect", host="127.0.0.1", port=server.getsockname()[1])


def test_progress_arrives(bench: Bench) -> None:
    seen: list[tuple[int, int, str]] = []
    scratch = bench.folder / "progress"
    scratch.mkdir()
    request = Request(
        step="report",
        runs="testing.steps_cheap/report",
        inputs={},
        params={"total": 8, "pause_s": 0.15},
    )
    bench.worker.run(request, scratch, on_progress=lambda *report: seen.append(report))
    assert len(seen) > 1
    assert seen[-1][1:] == (8, "windows")


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel's high-water mark is Linux's"
)
def test_peak_memory_is_the_steps_own(bench: Bench) -> None:
    base = bench("nothing").peak_rss_bytes
    high = bench("allocate", mib=300, hold_s=0.3).peak_rss_bytes
    after = bench("nothing").peak_rss_bytes
    assert high - base == pytest.approx(300 * 2**20, rel=0.25)
    assert after < base + 100 * 2**20


def test_a_step_costs_little_beyond_its_work(bench: Bench) -> None:
    """No timed test: only that serving is by events, not by waiting out a polling interval."""
    bench("nothing")
    with within(10):
        for _ in range(20):
            bench("nothing")


def test_bars_of_tools_are_progress_until_the_step_speaks_itself(bench: Bench) -> None:
    heard: list[tuple[int, int, str]] = []
    bench("bars", on_progress=lambda *report: heard.append(report))
    assert heard[0][2] == "parts (a tool)"
    assert heard[-1] == (7, 7, "windows")
    assert {unit for _, _, unit in heard} == {"parts (a tool)", "windows"}

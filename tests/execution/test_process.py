"""The rarer endings of a step, and what a worker keeps from the steps: stdin, secrets, the network,
our packages."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.clock import LOAD, within
from testing.places import TESTS
from testing.tiers import sizes
from testing.workers import Bench, alive, bare_bench, family, gone, posix

from phipipe.errors import Interrupted, SourceError, StepFailed, StepKilled, ToolchainError
from phipipe.execution import endings
from phipipe.execution.process import Request
from phipipe.settings import COMPUTING, OFFLINE, is_among

LINUX = sys.platform == "linux"
linux = pytest.mark.skipif(not LINUX, reason="Linux's /proc")
FOR_PYTHON = {row for row in COMPUTING if row.startswith("PYTHON")} | {"GLIBC_TUNABLES", "MALLOC_*"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.worker.close()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which nothing at all is installed, psutil neither."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def log_of(error: StepFailed | StepKilled) -> Path:
    return Path(str(error.hint).rpartition("log: ")[2])


# How a step ends


def test_a_failures_log_holds_the_traceback_and_what_native_code_and_children_printed(
    bench: Bench,
) -> None:
    with pytest.raises(StepFailed) as caught:
        bench("speak_and_fail", word="canto")
    assert caught.value.exit_code == 5
    log = log_of(caught.value)
    assert log.parent == bench.folder / "logs"
    said = log.read_text("utf-8")
    for what in ("python é", "error", "native", "descriptor", "child"):
        assert f"canto {what}\n" in said
    assert "ValueError: cannot go on" in said
    assert "in speak_and_fail" in said


def test_the_log_of_a_step_is_its_own(bench: Bench) -> None:
    first = bench("speak", word="first").log.read_text("utf-8")
    second = bench("speak", word="second").log.read_text("utf-8")
    assert "second" not in first
    assert "first" not in second


def test_a_failed_step_costs_the_next_one_no_new_worker(bench: Bench) -> None:
    bench("count")
    before = bench.worker.pid
    with pytest.raises(StepFailed):
        bench("fail")
    bench("count")
    assert json.loads((bench.out / "count.json").read_text()) == [2, before]


def test_the_logs_that_are_kept_do_not_grow_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "KEPT_LOGS", 3)
    for _ in range(6):
        with pytest.raises(StepFailed):
            bench("fail")
    assert len(list((bench.folder / "logs").iterdir())) == 3


@posix
@pytest.mark.parametrize(
    ("step", "params"),
    [
        ("kill_itself", {"signal": 9}),
        ("exit_at_once", {"code": 137}),
        ("run_a_tool", {"code": 137}),
        ("out_of_memory", {}),
    ],
)
def test_an_end_that_looks_like_no_memory_has_its_peak_and_advice(
    bench: Bench, step: str, params: dict[str, int]
) -> None:
    with pytest.raises(StepKilled, match=r"\d\.\d\d GiB") as caught:
        bench(step, **params)
    assert caught.value.exit_code == 6
    assert f"`{step}`" in caught.value.message
    assert "more memory" in str(caught.value.hint)
    assert log_of(caught.value).is_file()
    bench("count")


@posix
def test_the_peak_of_a_step_that_was_killed_is_what_it_had(tmp_path: Path) -> None:
    made = Bench(tmp_path)

    def kill(done: int, total: int, unit: str) -> None:
        """Once it says for the second time that it holds its memory: between the two it was looked
        at."""
        reports.append(done)
        if len(reports) == 2:
            psutil.Process(made.worker.pid).kill()

    reports: list[int] = []
    with pytest.raises(StepKilled) as caught:
        made("allocate", on_progress=kill, mib=400, hold_s=300)
    told = float(caught.value.message.rpartition(" GiB")[0].rpartition(" ")[2])
    assert told == pytest.approx(400 / 1024, rel=0.25)
    assert made.worker.pid is None


@posix
def test_another_signal_is_named(bench: Bench) -> None:
    with pytest.raises(StepKilled, match="SIGABRT") as caught:
        bench("kill_itself", signal=int(signal.SIGABRT))
    assert "last words" in log_of(caught.value).read_text("utf-8")


def test_a_tool_that_fails_is_a_failed_step(bench: Bench) -> None:
    with pytest.raises(StepFailed, match="CalledProcessError"):
        bench("run_a_tool", code=1)


def test_an_error_of_the_system_that_is_no_full_disk_is_a_failed_step(bench: Bench) -> None:
    with pytest.raises(StepFailed, match="PermissionError"):
        bench("raise_os_error", errno=errno.EACCES)


def test_a_package_that_is_missing_is_the_toolchains_damage_even_if_another_error_hides_it(
    bench: Bench,
) -> None:
    with pytest.raises(ToolchainError, match="phipipe_has_no_such_package") as caught:
        bench("wrap_an_import_failure")
    assert caught.value.exit_code == 4
    assert caught.value.hint == "phipipe toolchain install test --force"


def test_a_module_of_ours_that_is_missing_is_no_toolchains_damage(bench: Bench) -> None:
    with pytest.raises(StepFailed, match="ModuleNotFoundError"):
        bench("import_one", module="phipipe.no_such_module")


def test_being_told_to_stop_keeps_its_exit_code(bench: Bench) -> None:
    with pytest.raises(Interrupted) as caught:
        bench("be_told_to_stop")
    assert caught.value.exit_code == 143


def test_a_python_that_is_not_there_is_a_toolchain_to_be_repaired(tmp_path: Path) -> None:
    made = bare_bench(tmp_path, tmp_path / "no-python")
    with pytest.raises(ToolchainError, match="`test` cannot be started") as caught:
        made("count")
    assert caught.value.hint == "phipipe toolchain install test --force"
    made.worker.close()


@posix
def test_a_python_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'no libpython here' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    made = bare_bench(tmp_path, tmp_path / "python")
    with pytest.raises(ToolchainError, match="no libpython here"):
        made("count")
    made.worker.close()


@posix
def test_a_forked_child_that_holds_our_pipe_delays_no_ending(bench: Bench) -> None:
    with within(5), pytest.raises(StepKilled, match="exit code 3"):
        bench("fork_and_die")
    bench("count")


@posix
@pytest.mark.parametrize("limit", ["PHIPIPE_STEP_TIMEOUT_S", "PHIPIPE_IDLE_TIMEOUT_S"])
def test_a_family_that_ignores_sigterm_is_gone_within_5_seconds_of_its_limit(
    tmp_path: Path, limit: str
) -> None:
    made = Bench(tmp_path, **{limit: "2"})
    with within(2 + 2 + 5):  # the limit itself, and up to 2 s in which they start
        with pytest.raises(StepKilled, match=limit) as caught:
            made("spawn", inputs={"pids": tmp_path / "pids.json"})
        pids = family(tmp_path / "pids.json")
        assert gone(pids, 0.5)
    assert caught.value.exit_code == 6
    made.worker.close()


@posix
def test_a_step_that_holds_the_interpreter_is_ended_by_its_limit(tmp_path: Path) -> None:
    made = Bench(tmp_path, PHIPIPE_STEP_TIMEOUT_S="1")
    with within(6), pytest.raises(StepKilled, match="PHIPIPE_STEP_TIMEOUT_S"):
        made("compute_a_huge_power")
    made.worker.close()


def test_work_and_output_are_not_idleness(tmp_path: Path) -> None:
    made = Bench(tmp_path, PHIPIPE_IDLE_TIMEOUT_S="1")
    made("work", seconds=2)
    made("report", total=4, pause_s=0.5)
    made.worker.close()


# What goes with the worker


PARENT = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from testing.workers import bare_bench
def stop(signum, frame):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
folder, step, python = Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
bench = bare_bench(folder, python)
bench("environment" if python == Path(sys.executable) else "count")
bench(step, inputs={"pids": folder / "pids.json"}, seconds=300, hold=sys.argv[5:] == ["hold"])
"""


def start_parent(
    folder: Path, step: str, *how: str, python: Path | None = None
) -> subprocess.Popen[bytes]:
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        PARENT,
        str(TESTS),
        str(folder),
        step,
        str(python or sys.executable),
        *how,
    ]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=TESTS.parent)


@posix
@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["sleep", "compute_a_huge_power"])
def test_a_parent_that_is_asked_to_stop_is_gone_in_5_seconds_with_all_its_own(
    tmp_path: Path, number: int, step: str
) -> None:
    parent = start_parent(tmp_path / "run", step)
    pids = family(tmp_path / "run" / "pids.json")
    with within(5):
        parent.send_signal(number)
        parent.wait(20)
        assert gone(pids, 0.2)


@pytest.mark.full
@posix
@pytest.mark.crash
@pytest.mark.parametrize("parents_in_all", sizes(20, 200))
def test_of_parents_that_are_killed_none_leaves_a_process_or_a_folder(
    tmp_path: Path, parents_in_all: int
) -> None:
    ways = [("spawn",), ("sleep",), ("spawn", "hold"), ("compute_a_huge_power",)]
    for batch in range(parents_in_all // len(ways)):
        folders = [tmp_path / f"{batch}-{i}" for i in range(len(ways))]
        parents = [start_parent(folder, *way) for folder, way in zip(folders, ways, strict=True)]
        families = [family(folder / "pids.json") for folder in folders]
        for parent in parents:
            parent.kill()
        for way, folder, pids in zip(ways, folders, families, strict=True):
            assert gone(pids), f"orphans of {way} in batch {batch}: {alive(pids)}"
            home = Path(
                json.loads((folder / "request-1" / "out" / "environment.json").read_text())["temp"]
            )
            end = time.monotonic() + 5 * LOAD
            while home.exists() and time.monotonic() < end:
                time.sleep(0.05)
            assert not home.exists()
        for parent in parents:
            parent.wait(20)


@posix
@pytest.mark.crash
def test_no_child_outlives_a_killed_parent_where_the_worker_has_no_psutil(
    tmp_path: Path, bare_python: Path
) -> None:
    for trial in range(4):
        parent = start_parent(tmp_path / str(trial), "detach", python=bare_python)
        pids = family(tmp_path / str(trial) / "pids.json")
        parent.kill()
        parent.wait(10)
        found = gone(pids)
        orphans = alive(pids)
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        assert found, f"orphans in trial {trial}: {orphans}"


def test_closing_ends_the_worker_its_guard_its_threads_and_its_temporary_files(
    bench: Bench,
) -> None:
    bench("environment")
    home = Path(json.loads((bench.out / "environment.json").read_text())["temp"])
    bench("leave_files")
    bench("leave_a_thread")
    assert list(home.rglob("big"))
    ours = [p.pid for p in psutil.Process().children(recursive=True)]
    assert bench.worker.pid in ours
    bench.worker.close()
    assert gone(ours)
    assert not home.exists()
    bench("count")  # and it can be started again


# What a step is given, and what it is not


def test_a_step_gets_its_inputs_and_no_stdin_and_leaves_its_files(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("one ")
    bench("copy", inputs={"text": tmp_path / "text.txt"}, more="two")
    assert (bench.out / "copy.txt").read_text() == "one two"
    bench("ask")
    assert (bench.out / "answer.txt").read_text() == "''"


@linux
def test_no_secret_is_in_the_environment_or_arguments_of_any_process_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "GPG_PASSPHRASE"):
        monkeypatch.setenv(name, "canary-2718")
    bench("environment")
    told = json.loads((bench.out / "environment.json").read_text("utf-8"))
    assert "canary-2718" not in str(told)
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
    ):
        assert told["env"][name] == "1"
    ours = psutil.Process().children(recursive=True)
    assert len(ours) >= 2, "the worker and its guard"
    for child in ours:
        assert "canary-2718" not in f"{child.environ()} {child.cmdline()}"
    with pytest.raises(StepFailed):
        bench("fail")
    assert "canary-2718" not in bench.logs()
    assert all(b"canary-2718" not in p.read_bytes() for p in bench.folder.rglob("*") if p.is_file())


@given(
    names=st.lists(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,30}", fullmatch=True), min_size=40, max_size=200
    )
)
@example(
    names=[
        "PRIVATE_KEY_PEM",
        "JWT",
        "KUBECONFIG",
        "NPM_AUTH",
        "SLACK_WEBHOOK",
        "CUDA_API_KEY",
        "PYTEST_AUTH",
    ]
)
@example(
    names=[
        "SSH_AUTH_SOCK",
        "UV_INDEX_ACME_PASSWORD",
        "HTTPS_PROXY",
        "DATABASE_URL",
        "PS1",
        "BASH_ENV",
    ]
)
@hypothesis.settings(max_examples=5, deadline=None)
def test_no_variable_of_another_name_reaches_any_process_of_ours(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    own = {"PYTHONPATH", "PYTHONHOME", *OFFLINE, *os.environ}
    strange = [name for name in names if name not in own and not is_among(name, COMPUTING)]
    known = {row.replace("*", "X_1618") for row in COMPUTING} - {
        "LD_PRELOAD",
        "LD_AUDIT",
        *FOR_PYTHON,
        *os.environ,
    }
    made = Bench(tmp_path_factory.mktemp("bench"))
    with pytest.MonkeyPatch.context() as patch:
        for name in (*strange, *known):
            patch.setenv(name, "canary-2718" if name in strange else "1618")
        patch.setenv("OMP_URL", "https://me:canary-2718@example.org")
        made("environment")
        told = json.loads((made.out / "environment.json").read_text("utf-8"))["env"]
        children = (
            [child.environ() for child in psutil.Process().children(recursive=True)]
            if LINUX
            else []
        )
    made.worker.close()
    assert "canary-2718" not in f"{told} {children}"
    assert not {*strange} & {*told}
    assert {name for name in known if told.get(name) != "1618"} <= {
        "TMPDIR",
        "TEMP",
        "TMP",
        *OFFLINE,
    }


@pytest.mark.parametrize("how", ["C", "Python", "numpy", "shelve"])
def test_no_pickle_is_loaded_by_whatever_way(bench: Bench, how: str) -> None:
    with pytest.raises(SourceError, match="refused to unpickle") as caught:
        bench("unpickle_harmlessly", how=how)
    assert caught.value.exit_code == 8
    assert "safetensors" in str(caught.value.hint)


@posix
def test_a_step_may_have_a_pool_of_its_own(bench: Bench) -> None:
    bench("use_a_process_pool")
    assert (bench.out / "sum.txt").read_text() == "3"


def test_an_address_that_is_given_as_bytes_is_refused_too(bench: Bench) -> None:
    with pytest.raises(StepFailed, match=r"refused to connect to 192\.0\.2\.1"):
        bench("connect_by_bytes")


def test_in_another_python_phipipe_can_be_imported_and_nothing_beside_it(
    tmp_path: Path, bare_python: Path
) -> None:
    made = bare_bench(tmp_path, bare_python)
    try:
        made("environment")
        told = json.loads((made.out / "environment.json").read_text("utf-8"))
        assert Path(told["argv"][0]) == bare_python
        installed = str(Path(psutil.__file__).parent.parent)
        assert installed not in told["path"]
        for name in ("psutil", "pydantic", "yaml", "click"):
            with pytest.raises(ToolchainError, match=name):
                made("import_one", module=name)
        made("import_one", module="phipipe.progress")
    finally:
        made.worker.close()


def test_without_psutil_a_worker_serves_reports_and_ends_like_any_other(
    tmp_path: Path, bare_python: Path
) -> None:
    made = bare_bench(tmp_path, bare_python)
    try:
        for expected in (1, 2):
            made("count")
            assert json.loads((made.out / "count.json").read_text()) == [expected, made.worker.pid]
        seen: list[tuple[int, int, str]] = []
        (tmp_path / "report").mkdir()
        request = Request(
            step="report",
            runs="testing.steps_cheap/report",
            inputs={},
            params={"total": 2, "pause_s": 0.3},
        )
        made.worker.run(request, tmp_path / "report", on_progress=lambda *told: seen.append(told))
        assert seen[-1] == (2, 2, "windows")
        with pytest.raises(StepFailed, match="cannot go on"):
            made("fail")
        if sys.platform == "linux":
            base = made("nothing").peak_rss_bytes
            high = made("allocate", mib=200, hold_s=0.3)
            assert high.peak_rss_bytes - base == pytest.approx(200 * 2**20, rel=0.25)
            assert high.peak_anon_bytes == pytest.approx(200 * 2**20, rel=0.25)
            assert made("nothing").peak_rss_bytes < base + 50 * 2**20
    finally:
        made.worker.close()

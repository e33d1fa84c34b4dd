"""Batches that a Prefect server starts: a real one, on loopback, with everything it keeps in the
test's folder."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import uv
from testing.places import QUICKSTART, ROOT
from testing.recipes import write
from testing.shell import Run

YEARLY = "0 0 1 1 *"
FAST = "{tokens: 512, window: 256%s}"
MEASURED = "measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}\n"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints" / "prefect.txt").read_text("utf-8").splitlines()
    return dict(line.partition(" ;")[0].strip().split("==") for line in lines)


def test_constraints_are_exact_versions_and_hold_the_extra() -> None:
    found = constraints()
    assert found["prefect"].startswith("3.")
    assert {"click", "pydantic", "cronsim", "uvicorn", "sqlalchemy"} <= set(found)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in found.values())


# --- what is refused before anything is started


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--cron", "61 * * * *"],
            ["`61 * * * *` is no cron expression: its minute is wrong", "five fields"],
        ),
        (
            ["--timezone", "Europe/Berlni"],
            ["no timezone `Europe/Berlni`", "--timezone Europe/Berlin"],
        ),
        (["--timezone", "../etc"], ["no timezone `../etc`"]),
        (["--name", "nothing"], ["nothing is chosen by --name nothing", "names there: quickstart"]),
        (["--job", "a/b"], ["cannot be called `a/b`", "--job nightly"]),
    ],
)
def test_what_is_wrong_is_said_before_any_server_is_asked(
    run: Run,
    words: list[str],
    said: list[str],
) -> None:
    code, out, err = run("schedule", "serve", QUICKSTART, *words)
    assert (code, out) == (2, ""), err
    assert all(word in err for word in said), err


def test_without_prefect_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "phipipe.batch.prefect", raising=False)
    monkeypatch.setitem(sys.modules, "prefect", None)
    code, _, err = run("schedule", "serve", QUICKSTART)
    assert code == 4
    assert "Prefect, which is not installed" in err
    assert "pip install 'phipipe[prefect]'" in err


def test_the_next_times_are_those_of_the_zone(run: Run) -> None:
    _, _, err = run(
        "schedule",
        "serve",
        QUICKSTART,
        "--cron",
        "30 7 * * *",
        "--timezone",
        "Asia/Tokyo",
        "--job",
        "/",
    )
    assert re.search(r"next in Asia/Tokyo: \w{3} \d{4}-\d\d-\d\d 07:30,", err), err


# --- a server


@pytest.fixture(scope="session")
def prefect_python(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> str:
    """A Python with `phipipe[prefect]` as users are told to install it."""
    if importlib.util.find_spec("prefect"):
        return sys.executable
    folder = tmp_path_factory.mktemp("prefect") / "venv"
    tool = uv.find_uv_bin()
    subprocess.run([tool, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [
        tool,
        "pip",
        "install",
        "-q",
        "--python",
        str(python),
        "-c",
        "constraints/prefect.txt",
        "-e",
        ".[prefect]",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return str(python)


@dataclass
class Server:
    """What the tests start lies below ``folder`` and speaks to ``url``."""

    python: str
    folder: Path
    url: str
    env: dict[str, str]

    def ask(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except (
                urllib.error.HTTPError
            ) as error:  # its database is locked: Prefect's own clients ask again, too
                if error.code != 503 or time.monotonic() > end:
                    raise
            time.sleep(1)

    def command(self, *words: str | Path) -> list[str]:
        return [self.python, "-m", *map(str, words)]

    @contextlib.contextmanager
    def running(self, name: str, *words: str | Path) -> Iterator[Path]:
        """A program while the block runs; gives the file with what it says."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(*words),
                cwd=self.folder,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                yield log
            finally:
                end(process)

    def phipipe(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("phipipe", *words),
            cwd=self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def deployment(self, job: str) -> str:
        return str(until(functools.partial(self._deployment, job), 60))

    def _deployment(self, job: str) -> str | None:
        with contextlib.suppress(urllib.error.HTTPError):
            return str(self.ask(f"/deployments/name/phipipe-batch/{job}")["id"])
        return None

    def due(self, deployment: str, **more: Any) -> str:
        return str(
            self.ask(
                f"/deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"}, **more
            )["id"]
        )

    def state(self, flow_run: str) -> dict[str, Any]:
        return dict(self.ask(f"/flow_runs/{flow_run}")["state"])

    def ended(self, flow_run: str, seconds: float = 60) -> dict[str, Any]:
        def final() -> dict[str, Any] | None:
            state = self.state(flow_run)
            return state if state["type"] in FINAL else None

        return dict(until(final, seconds))

    def runs(self) -> list[dict[str, Any]]:
        return list(json.loads(self.phipipe("runs", "ls", "--json").stdout))

    def workers(self) -> list[list[str]]:
        """What runs on this machine for the tests' own cache."""
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        return [line for line in lines if any(self.env["PHIPIPE_CACHE"] in word for word in line)]

    def logged(self, flow_run: str, text: str, seconds: float = 20) -> None:
        """Wait until there is a line with ``text``: they come in groups, also after the end."""
        until(lambda: True if any(text in line for line in self._logs(flow_run)) else None, seconds)

    def _logs(self, flow_run: str) -> list[str]:
        found = self.ask(
            "/logs/filter", logs={"flow_run_id": {"any_": [flow_run]}}, sort="TIMESTAMP_ASC"
        )
        return [entry["message"] for entry in found]


def until(found: Callable[[], Any], seconds: float) -> Any:
    """What ``found`` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, then make sure of it and of all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        for member in [*family, psutil.Process(process.pid)] if process.poll() is None else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    prefect_python: str,
    tmp_path_factory: pytest.TempPathFactory,
    toolchains: Path,
    python_of: Callable[[str], Path],
) -> Iterator[Server]:
    for name in ("onnxruntime", "torch"):  # before anything is timed
        python_of(name)
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    (folder / "tmp").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "PHIPIPE_CACHE": str(folder / "cache"),
        "PHIPIPE_TOOLCHAINS": str(toolchains),
        "TMPDIR": str(folder / "tmp"),
    }
    made = Server(prefect_python, folder, env["PREFECT_API_URL"], env)
    with made.running(
        "server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)
    ) as log:

        def healthy() -> bool | None:
            with contextlib.suppress(OSError):
                return bool(made.ask("/health"))
            return None

        try:
            until(healthy, 90)
        except AssertionError:
            pytest.fail(log.read_text("utf-8", "replace")[-3000:])
        write(folder / "good", "one", MEASURED, evaluate=FAST % "")
        write(
            folder / "bad",
            "strict",
            MEASURED,
            evaluate=FAST % ", gates: {top1: {min: 1.0}, kld_mean: {max: 0.0}}",
        )
        yield made


def test_a_batch_fires_on_the_minute_and_a_failed_one_says_why(server: Server) -> None:
    built = server.phipipe("batch", "good", "--out", "out")  # from here on it is cached
    assert built.returncode == 0, built.stderr
    serve = ("phipipe", "schedule", "serve")
    with (
        server.running(
            "good", *serve, "good", "--cron", "* * * * *", "--job", "good", "--out", "out"
        ) as log,
        server.running(
            "bad", *serve, "bad", "--cron", "* * * * *", "--job", "bad", "--out", "out2"
        ),
    ):
        good, bad = (_first(server, server.deployment(job)) for job in ("good", "bad"))
        state = server.ended(good["id"], 90)
        assert state["type"] == "COMPLETED", log.read_text("utf-8")
        assert state["message"] == "1 build: 1 cached"
        assert good["expected_start_time"][17:19] == "00"
        assert good["auto_scheduled"]
        server.logged(good["id"], "package  cached")
        (artifact,) = server.ask(
            "/artifacts/filter", artifacts={"key": {"any_": ["phipipe-good"]}}, limit=1
        )
        (row,) = json.loads(artifact["data"])
        assert (artifact["type"], row["build"], row["state"], row["error"]) == (
            "table",
            "one",
            "cached",
            None,
        )
        assert row["KLD, nats"] > 0
        state = server.ended(bad["id"], 120)
        assert state["type"] == "FAILED"
        assert state["message"].startswith(
            "exit code 7: 1 build: 1 gated\nstrict: gate failed: `kld_mean` is 0.00"
        )
        server.logged(bad["id"], "gates  failed (7): gate failed")

    def paused() -> bool:
        return bool(server.ask(f"/deployments/{server.deployment('good')}")["paused"])

    assert paused()  # nobody is there to run it
    with server.running("again", *serve, "good", "--cron", YEARLY, "--job", "good", "--out", "out"):
        until(lambda: None if paused() else True, 30)


def _first(server: Server, deployment: str) -> dict[str, Any]:
    """The first run of a schedule that is due from now on, once it has begun."""

    def begun() -> dict[str, Any] | None:
        runs = server.ask(
            "/flow_runs/filter",
            flow_runs={"deployment_id": {"any_": [deployment]}, "start_time": {"is_null_": False}},
            sort="EXPECTED_START_TIME_ASC",
        )
        return dict(runs[0]) if runs else None

    return dict(until(begun, 100))


@pytest.mark.nightly
def test_one_at_a_time_and_a_cancelled_run_ends_its_batch(server: Server) -> None:
    long = "measure: {prompt_tokens: 512, new_tokens: 256, repetitions: 1000}\n"
    path = write(server.folder / "long", "long", long, evaluate=FAST % "")
    words = ("schedule", "serve", path, "--cron", YEARLY, "--job", "long", "--out", "out3")
    with server.running("long", "phipipe", *words) as log:
        job = server.deployment("long")
        first = server.due(job)
        server.logged(first, "measure  runs", 120)  # while it does
        second = server.due(job)
        state = server.ended(second)
        assert state["type"] == "CANCELLED"
        assert "concurrency limit" in state["message"]
        assert server.state(first)["type"] == "RUNNING"
        (begun,) = [one for one in server.runs() if one["state"] == "running"]
        server.ask(f"/flow_runs/{first}/set_state", state={"type": "CANCELLING"})
        assert server.ended(first)["type"] == "CANCELLED", log.read_text("utf-8")
        (ended,) = [one for one in server.runs() if one["id"] == begun["id"]]
        assert (ended["state"], ended["exit_code"]) == (
            "failed",
            143,
        )  # it had time to end as if it was asked to
        assert not server.workers()
        gone = server.due(
            job,
            parameters={"words": ["batch", "gone", "--name", "x"], "folder": str(server.folder)},
        )
        assert server.ended(gone)["message"].startswith("exit code 2: ")
        elsewhere = server.due(job, parameters={"words": ["batch", "good"], "folder": "/not/here"})
        assert (
            server.ended(elsewhere)["message"]
            == "exit code 2: no folder `/not/here` on this machine"
        )
    (plan,) = json.loads(server.phipipe("plan", path, "--json").stdout)
    assert {"quantize", "evaluate"} <= {
        step["name"] for step in plan["steps"] if step["cached"]
    }  # nothing is lost


@pytest.mark.nightly
def test_a_worker_of_a_pool_runs_what_is_left_to_it(server: Server) -> None:
    subprocess.run(
        server.command("prefect", "work-pool", "create", "cuda", "--type", "process"),
        env=server.env, cwd=server.folder, check=True, capture_output=True,
    )  # fmt: skip
    done = server.phipipe(
        "schedule", "serve", "good", "--job", "pooled", "--out", "out", "--work-pool", "cuda"
    )
    assert done.returncode == 0, done.stderr
    assert "prefect worker start --pool cuda" in done.stdout
    with server.running("worker", "prefect", "worker", "start", "--pool", "cuda") as log:
        state = server.ended(server.due(server.deployment("pooled")), 90)
        assert state["type"] == "COMPLETED", log.read_text("utf-8")


def test_a_pool_that_is_not_there(server: Server) -> None:
    done = server.phipipe("schedule", "serve", "good", "--work-pool", "npu")
    assert done.returncode == 2
    assert "has no work pool `npu`" in done.stderr
    assert "prefect work-pool create npu --type process" in done.stderr


class Other(http.server.BaseHTTPRequestHandler):
    """A server of another version."""

    def do_GET(self) -> None:
        body = json.dumps("2.20.9" if self.path.endswith("/version") else True).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def refused(prefect_python: str, tmp_path: Path) -> Callable[[str], tuple[int, str]]:
    """How `serve` ends with a server's address: exit code, stderr."""

    def command(url: str) -> tuple[int, str]:
        env = {
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": url,
            "DO_NOT_TRACK": "1",
        }
        done = subprocess.run(
            [prefect_python, "-m", "phipipe", "schedule", "serve", str(QUICKSTART)],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stderr

    return command


@pytest.mark.nightly
def test_no_server_is_named(refused: Callable[[str], tuple[int, str]]) -> None:
    code, err = refused("")
    assert code == 8
    assert "no Prefect server is named" in err
    assert "prefect server start" in err


@pytest.mark.nightly
def test_no_server_answers_and_no_secret_is_shown(
    refused: Callable[[str], tuple[int, str]],
) -> None:
    code, err = refused(f"http://me:hush@127.0.0.1:{free_port()}/api")
    assert code == 8, err
    assert re.search(r"no Prefect server answers at `http://127\.0\.0\.1:\d+/api`", err)
    assert "hush" not in err
    assert "prefect server start" in err


@pytest.mark.nightly
def test_a_server_of_another_version(refused: Callable[[str], tuple[int, str]]) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            code, err = refused(f"http://127.0.0.1:{other.server_port}/api")
        finally:
            other.shutdown()
    assert code == 4, err
    assert "is Prefect 2.20.9" in err
    assert "pip install 'prefect==2.20.9'" in err

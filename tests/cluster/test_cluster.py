"""Steps on other machines: a real Dask scheduler and workers, a real S3 server, all on loopback."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from testing.clock import within
from testing.drive import PATHS
from testing.places import QUICKSTART, ROOT, TESTS
from testing.remote_client import attempt, planned
from testing.shared_store import bucket
from testing.tiny_toolchain import Tiny, wait_until

from phipipe.api import show
from phipipe.cluster import client as cluster
from phipipe.cluster import dask as cluster_dask
from phipipe.cluster import placement, resources
from phipipe.cluster import worker as cluster_worker
from phipipe.errors import PhipipeError, RecipeError, TargetError, ToolchainError, decoded
from phipipe.package import manifest
from phipipe.settings import Settings
from phipipe.steps import Step

RECIPE = """
name: four
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int8
evaluate: {text: {builtin: stories}, tokens: 1024}
measure: {prompt_tokens: 32, new_tokens: 8, repetitions: 1}
matrix:
  - {backend: onnxruntime}
  - {backend: openvino}
  - {backend: llamacpp}
  - {backend: torch}
"""
LABELS = (("torch", "onnxruntime"), ("openvino", "llamacpp"), ())  # the last one can do everything


class Machines:
    """A scheduler and workers; all processes end with ``close``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()
        self.port = 0

    def start(self, name: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("wb")
        variables = {
            **os.environ,
            "PYTHONPATH": PATHS,
            **environment,
        }
        self.started.append(
            subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=variables)
        )
        return self.started[-1]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def wait_for(self, name: str, words: str, seconds: float = 200) -> str:
        end = time.monotonic() + seconds
        while not (found := re.search(words, self.log(name))):
            assert time.monotonic() < end, self.log(name)
            time.sleep(0.05)
        return found[0]

    def scheduler(self, protocol: str = "tcp") -> subprocess.Popen[bytes]:
        place = (
            "--protocol",
            protocol,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--no-dashboard",
        )
        process = self.start("scheduler", "distributed.cli.dask_scheduler", *place)
        there = self.wait_for("scheduler", rf"Scheduler at:\s+{protocol}://127.0.0.1:\d+")
        self.port = int(there.rpartition(":")[2])
        return process

    def worker(self, name: str, *toolchains: str, **environment: str) -> subprocess.Popen[bytes]:
        options = [word for toolchain in toolchains for word in ("--toolchain", toolchain)]
        words = ("phipipe", "worker", "--scheduler", self.url, *options)
        process = self.start(name, *words, PHIPIPE_CACHE=str(self.folder / name), **environment)
        self.wait_for(name, "working for")
        return process

    @property
    def url(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                end(process.pid)
            process.wait()


def end(pid: int) -> None:
    """Kill a process and all that it started."""
    first = psutil.Process(pid)
    for process in (first, *first.children(recursive=True)):
        process.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made.close()


def run(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``phipipe`` with a cache of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PHIPIPE_CACHE": str(folder / name),
    }
    command = [sys.executable, "-m", "phipipe", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


def board(folder: Path) -> dict[str, Any]:
    """Of each build what does not depend on the clock: fidelity, and what every step but
    measurements gave."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob(manifest.NAME)):
        told = json.loads(path.read_text("utf-8"))
        steps = {
            name: step["digest"]
            for name, step in told["steps"].items()
            if name not in ("measure", "gates")
        }
        found[told["name"]] = (told["fidelity"]["metrics"], steps)
    return found


@pytest.mark.usefixtures("toolchains")
@pytest.mark.crash
@pytest.mark.timeout(900)
def test_three_workers_of_which_one_is_killed_make_the_same_board(
    machines: Machines,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "four.yaml"
    recipe.write_text(RECIPE, "utf-8")
    alone = run(tmp_path, "alone", "run", str(recipe), "--out", str(tmp_path / "a"))
    assert alone.returncode == 0, alone.stderr
    monkeypatch.setenv("PHIPIPE_REMOTE", bucket(server, tmp_path, monkeypatch))
    machines.scheduler()
    workers = [machines.worker(f"w{i}", *toolchains) for i, toolchains in enumerate(LABELS)]
    words = ("phipipe", "run", str(recipe), "--on", machines.url, "--out", str(tmp_path / "b"))
    client = machines.start("client", *words, PHIPIPE_CACHE=str(tmp_path / "client"))
    machines.wait_for("w0", " starts")
    end(workers[0].pid)
    assert client.wait(400) == 0, machines.log("client")
    expected = board(tmp_path / "a")
    assert len(expected) == 4
    assert board(tmp_path / "b") == expected
    done = [
        line
        for name in ("w0", "w1", "w2")
        for line in re.findall(r"^\S+ \w{12} done$", machines.log(name), re.M)
    ]
    assert len(done) == len(set(done)) > 15  # each step once
    assert "toolchain" in machines.log("w1")
    for line in re.findall(r"^(\S+) \w{12} done$", machines.log("w1"), re.M):
        assert line not in ("baseline", "reference")  # torch's
    again = run(
        tmp_path, "client", "run", str(recipe), "--on", machines.url, "--out", str(tmp_path / "b")
    )
    assert again.returncode == 0, again.stderr
    assert "everything was cached" in again.stdout


@pytest.mark.usefixtures("toolchains")
@pytest.mark.timeout(300)
def test_what_no_worker_can_do_fails_at_once(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "shared").as_uri())
    machines.scheduler()
    machines.worker("w0", "torch")
    recipe = QUICKSTART
    with within(60):
        done = run(
            tmp_path,
            "client",
            "run",
            str(recipe),
            "--on",
            machines.url,
            "--out",
            str(tmp_path / "out"),
        )
    assert done.returncode == 3, done.stderr
    assert "can run on none of 1 worker: it needs toolchain onnxruntime" in done.stderr
    assert f"phipipe worker --scheduler {machines.url}" in done.stderr


@pytest.mark.timeout(300)
def test_a_plan_names_the_workers_of_each_step_and_the_step_that_none_can_do(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "shared").as_uri())
    machines.scheduler()
    machines.worker("w0", "torch")
    words = ("plan", str(QUICKSTART), "--on", machines.url)
    done = run(tmp_path, "client", *words)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if "will run" in line}
    assert "this machine" in lines["source"]
    assert re.search(r" 127\.0\.0\.1:\d+ ", lines["baseline"])
    assert "NOWHERE" in lines["convert"]
    assert "run would refuse: step `convert` can run on none of 1 worker" in done.stderr
    strict = run(tmp_path, "client", *words, "--strict", "--json")
    assert strict.returncode == 3
    (planned,) = json.loads(strict.stdout)
    steps = {step["name"]: step["machines"] for step in planned["steps"]}
    assert steps["source"] == ["this machine"]
    assert len(steps["baseline"]) == 1
    assert steps["convert"] == []
    assert planned["refusal"]["kind"] == "TargetError"
    monkeypatch.delenv("PHIPIPE_REMOTE")
    assert "set PHIPIPE_REMOTE" in run(tmp_path, "client", *words).stderr


@pytest.mark.usefixtures("toolchains")
@pytest.mark.timeout(300)
def test_batches_that_overlap_build_each_step_once(tmp_path: Path) -> None:
    recipe, out = QUICKSTART, tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "phipipe",
        "batch",
        str(recipe),
        "--out",
        str(out),
        "--log-format",
        "json",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PHIPIPE_CACHE": str(tmp_path / "cache"),
    }
    both = [
        subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=250)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    events = [json.loads(line) for text in said for line in text.splitlines()]
    made = [
        event["step"]
        for event in events
        if event["event"] == "step_finished" and not event["cached"]
    ]
    assert len(made) == len(set(made)) > 8
    version = (out / "quickstart" / "latest").read_text("utf-8").strip()
    assert (out / "quickstart" / version / manifest.NAME).is_file()
    checked = run(
        tmp_path, "cache", "verify", str(out / "quickstart"), "--json"
    )  # what was accepted last
    told = json.loads(checked.stdout)
    assert told.pop("signature")["state"] == "unsigned"
    assert told == {
        "package": str(out / "quickstart" / version),
        "ok": True,
        "findings": [],
    }


@pytest.mark.full
@pytest.mark.timeout(200)
def test_what_is_deleted_from_the_shared_store_meanwhile_is_shared_again(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "shared").as_uri())
    machines.scheduler()
    for name, tool in (("w0", "torch"), ("w1", "onnxruntime")):
        machines.worker(name, tool, PHIPIPE_TOOLCHAIN="current", PHIPIPE_WORKER_PATH=str(TESTS))

    def step(name: str, tool: str, tenths: int, *needs: str) -> Step:
        params: dict[str, Any] = {"name": name, "tenths": tenths}
        wanted = {need: need for need in needs}
        return Step(
            name=name,
            runs="testing.remote_client/rest",
            version=1,
            needs=wanted,
            params=params,
            toolchain=tool,
        )

    def delete() -> None:
        machines.wait_for("w0", r"first \w{12} done")
        shutil.rmtree(tmp_path / "shared" / "blobs")

    plan = planned(
        step("first", "torch", 0),
        step("slow", "onnxruntime", 40),
        step("both", "onnxruntime", 0, "first", "slow"),
    )
    deleting = threading.Thread(target=delete)
    deleting.start()
    done, heard = attempt(tmp_path / "client", plan, cluster.engine(machines.url))
    deleting.join()
    assert done.error is None
    assert (done.results["both"].stored.path / "made.txt").read_text() == "bothfirstslow"
    assert heard.lines[-1].startswith(
        "damaged in the cache, building again"
    )  # the client may have missed it, too
    assert (
        len(re.findall(" done$", machines.log("w0") + machines.log("w1"), re.M)) == 3
    )  # each made once
    assert {result.machine for result in done.results.values()} == {platform.node()}
    assert f", on {platform.node()}" in show.ending(done.results["both"])
    told = [report for label, *report in heard.reports if label == "slow"]
    assert 2 <= len(told) <= 5  # one a second, from the worker to the client
    assert told == sorted(told)
    assert {(total, unit) for _, total, unit in told} == {(40, "tenths")}


@pytest.mark.full
@pytest.mark.timeout(100)
def test_what_is_damaged_in_a_workers_cache_is_made_again(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"PHIPIPE_REMOTE": (tmp_path / "shared").as_uri(), "PHIPIPE_TOOLCHAIN": "current"}
    for name, value in (shared | {"PHIPIPE_WORKER_PATH": str(TESTS)}).items():
        monkeypatch.setenv(name, value)
    params: dict[str, Any] = {"name": "first", "tenths": 0}
    first = Step(
        name="first", runs="testing.remote_client/rest", version=1, params=params, toolchain="torch"
    )
    second = replace(
        first, name="second", needs={"first": "first"}, params=params | {"name": "second"}
    )
    done, _ = attempt(tmp_path / "w0", planned(first), None)
    assert done.error is None
    spoil(done.results["first"].stored.path / "made.txt")
    machines.scheduler()
    machines.worker("w0", "torch")
    done, heard = attempt(tmp_path / "client", planned(first, second), cluster.engine(machines.url))
    assert done.error is None
    assert (done.results["second"].stored.path / "made.txt").read_text() == "secondfirst"
    assert heard.lines[-1].startswith("damaged in the cache, building again")


def spoil(path: Path) -> None:
    """Turn one bit around, unseen by those that compare sizes and times."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def measured(**more: Any) -> Step:
    params = {"name": "m", "tenths": 30}
    step = Step(
        name="m",
        runs="testing.remote_client/rest",
        version=1,
        params=params,
        toolchain="torch",
        measurement=True,
    )
    return replace(step, **more)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_one_kind_of_machine_measures_and_where_it_is_lost_another_does(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "shared").as_uri())
    machines.scheduler()
    workers: dict[str, subprocess.Popen[bytes]] = {}
    for name in ("alpha", "beta"):
        words = (
            "testing.other_machine",
            name,
            "worker",
            "--scheduler",
            machines.url,
            "--toolchain",
            "torch",
        )
        own = {
            "PHIPIPE_CACHE": str(tmp_path / name),
            "PHIPIPE_TOOLCHAIN": "current",
            "PHIPIPE_WORKER_PATH": str(TESTS),
        }
        workers[name] = machines.start(name, *words, **own)
        machines.wait_for(name, "working for")
    for turn in range(3):  # Dask alone would take now one, now the other
        done, _ = attempt(
            tmp_path / f"client{turn}", planned(measured()), cluster.engine(machines.url)
        )
        assert done.error is None
        assert done.results["m"].cached == (turn > 0)
    (chosen,) = [name for name in workers if re.search(r"^m \w{12} done", machines.log(name), re.M)]
    (other,) = {*workers} - {chosen}

    def lose() -> None:
        machines.wait_for(chosen, r"done\nm \w{12} starts")
        end(workers[chosen].pid)

    losing = threading.Thread(target=lose)
    losing.start()
    again = measured(params={"name": "m", "tenths": 40})
    done, _ = attempt(tmp_path / "client", planned(again), cluster.engine(machines.url))
    losing.join()
    assert done.error is None
    assert re.search(r"m \w{12} done", machines.log(other))


def test_what_a_step_needs_is_chosen_alike_every_time() -> None:
    alike = {"toolchain torch": 1e6, "machine x86_64": 1e6, "memory_gib": 16.0}
    offers: list[dict[str, float]] = [
        alike | {"host b": 1e6},
        alike | {"host a": 1e6},
        alike | {"host c": 1e6},
    ]
    offers[0]["device npu"] = 1e6
    for order in (offers, offers[::-1]):
        assert placement.needs(measured(), order, "tcp://h:1") == {
            "toolchain torch": 1.0,
            "host a": 1.0,
        }
        bound = placement.needs(measured(machine=("device npu",)), order, "tcp://h:1")
        assert bound == {"toolchain torch": 1.0, "device npu": 1.0, "host b": 1.0}
    assert "host a" not in placement.needs(measured(measurement=False), offers, "tcp://h:1")
    with pytest.raises(
        TargetError, match="none of 3 workers: it needs machine arm64 and 32 GiB of memory"
    ):
        placement.needs(
            measured(machine=("machine arm64",), memory_bytes=32 * 2**30), offers, "tcp://h:1"
        )


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key for all, in files that Dask's own settings name."""
    from distributed import Security

    made = Security.temporary()
    for role in ("CLIENT", "WORKER", "SCHEDULER"):
        for kind in ("CERT", "KEY"):
            path = tmp_path / f"{role}-{kind}.pem"
            path.write_text(getattr(made, f"tls_{role}_{kind}".lower()), "utf-8")
            monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{role}__{kind}", str(path))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", str(tmp_path / "CLIENT-CERT.pem"))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "true")


@pytest.mark.usefixtures("toolchains")
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("certificates")
def test_a_lost_scheduler_ends_the_run_and_the_next_goes_on(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "shared").as_uri())
    recipe = QUICKSTART
    first = machines.scheduler("tls")
    machines.worker("w0")
    words = ("phipipe", "run", str(recipe), "--on", machines.url, "--out", str(tmp_path / "out"))
    client = machines.start("client", *words, PHIPIPE_CACHE=str(tmp_path / "client"))
    machines.wait_for("w0", "baseline .* done")
    first.kill()
    assert client.wait(120) == 4, machines.log("client")
    assert f"the scheduler at `tls://127.0.0.1:{machines.port}` is gone" in machines.log("client")
    machines.scheduler("tls")
    done = run(
        tmp_path, "client", *words[1:]
    )  # at once: the worker comes back by itself, and is waited for
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^baseline .* done", machines.log("w0"), re.M)) == 1
    assert re.search(
        r"is gone; working on(.|\n)*working for tls://.* as tls://", machines.log("w0")
    )


@pytest.mark.usefixtures("toolchains")
def test_workers_that_are_not_there_yet_are_waited_for(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ARRIVAL_S", 0.3)
    machines.scheduler()
    said: list[str] = []
    assert cluster.machines(machines.url, said.append) == frozenset()
    address = machines.url.replace("dask", "tcp")
    assert said == [f"the scheduler at {address} has no workers yet; waiting 0.3 s for the first"]


def settings(tmp_path: Path, **more: str) -> Settings:
    return Settings.read({"PHIPIPE_CACHE": str(tmp_path / "cache"), **more})


def made(tmp_path: Path, url: str, **more: str) -> PhipipeError:
    from phipipe.store.store import Store

    with pytest.raises(PhipipeError) as wrong:
        cluster.engine(url)(Store(tmp_path / "cache"), settings(tmp_path, **more), print, None)
    return wrong.value


def test_numbers_are_a_devices_own_where_a_worker_is_one() -> None:
    from phipipe import backends, hardware
    from phipipe.planning import machine
    from phipipe.recipe import device

    mac, any_mac, backend = (
        device.load("mac-16gb"),
        device.load("apple-silicon"),
        backends.load("mlx"),
    )
    with hardware.there(frozenset({"apple", "arm64", "device mac-16gb"})):
        assert machine.on_target(mac, mac.units[0].api, backend) == "true"
        assert machine.on_target(any_mac, any_mac.units[0].api, backend) == "true"
    with hardware.there(frozenset({"apple", "arm64"})):
        assert machine.on_target(mac, mac.units[0].api, backend) == "false"


def test_without_a_shared_store_there_is_no_cluster(tmp_path: Path) -> None:
    assert "PHIPIPE_REMOTE" in str(made(tmp_path, "dask://127.0.0.1:1").hint)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_dask, "CONNECT_S", 1.0)
    found = made(tmp_path, "dask://127.0.0.1:1", PHIPIPE_REMOTE=tmp_path.as_uri())
    assert isinstance(found, ToolchainError)
    assert "no scheduler answers" in found.message


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("certificates")
def test_tls_on_one_side_only_is_named(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    machines.scheduler("tls")
    monkeypatch.setattr(cluster_dask, "CONNECT_S", 5.0)
    with dask.config.set({"distributed.comm.require-encryption": False}):
        found = made(tmp_path, machines.url, PHIPIPE_REMOTE=tmp_path.as_uri())
    assert "hangs up" in found.message
    assert "both sides" in str(found.hint)


def test_a_worker_without_a_scheduler_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_dask, "CONNECT_S", 1.0)
    had = resources.resources((), ())
    with pytest.raises(ToolchainError, match=r"no scheduler answers at `dask://127\.0\.0\.1:1`"):
        cluster_worker.serve(
            "dask://127.0.0.1:1",
            settings(tmp_path, PHIPIPE_REMOTE=tmp_path.as_uri()),
            1,
            had,
            print,
        )


@pytest.mark.parametrize(
    ("ca", "cert", "key", "words"),
    [
        (None, "a.pem", "a.pem", "CA_FILE is not set"),
        ("a.pem", "a.pem", None, "WORKER__KEY is not set"),
        ("a.pem", "gone.pem", "a.pem", "WORKER__CERT names `gone.pem`, and there is no such file"),
        ("a.pem", "a.pem", "a.pem", "TLS cannot use its certificates"),
    ],
)
def test_certificates_that_are_not_there_are_named(
    ca: str | None,
    cert: str,
    key: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dask

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pem").write_text("no certificate", "utf-8")
    tls = {"ca-file": ca, "worker.cert": cert, "worker.key": key}
    settings = {f"distributed.comm.tls.{name}": value for name, value in tls.items()}
    with dask.config.set(settings), pytest.raises(RecipeError, match=words):
        cluster_dask.security("tls://farm:8786", "worker")


@pytest.mark.timeout(120)
def test_another_version_of_dask_is_refused(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    machines.scheduler()
    monkeypatch.setattr(distributed, "__version__", "2020.1.0")
    found = made(tmp_path, machines.url, PHIPIPE_REMOTE=tmp_path.as_uri())
    assert "we have 2020.1.0" in found.message


def test_off_loopback_there_is_tls_or_nothing(tmp_path: Path) -> None:
    found = made(tmp_path, "dask://build.example.org:8786", PHIPIPE_REMOTE=tmp_path.as_uri())
    assert isinstance(found, RecipeError)
    assert "TLS" in found.message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("dask://localhost:8786", "tcp://localhost:8786"),
        ("dask://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("dask://[::1]:1", "tcp://[::1]:1"),
        ("dask://farm:8786", "tls://farm:8786"),
        ("dask://10.0.0.7:8786", "tls://10.0.0.7:8786"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert cluster_dask.address(url) == expected


@pytest.mark.parametrize("url", ["tcp://h:1", "dask://h", "dask://h:x", "dask://:1", "h:1"])
def test_addresses_that_make_no_sense(url: str) -> None:
    with pytest.raises(RecipeError, match="scheduler's address"):
        cluster_dask.address(url)


def test_a_worker_of_another_version_says_so() -> None:
    step = cluster_worker.described(Step(name="s", runs="m/f", version=1))
    told = json.loads(
        cluster_worker.work(
            json.dumps({"phipipe": "0.0.1", "task": "t", "step": step, "inputs": {}})
        )
    )
    assert told["error"]["kind"] == "ToolchainError"
    assert "0.0.1" in told["error"]["message"]


def test_an_input_that_is_not_shared_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phipipe import __version__

    monkeypatch.setenv("PHIPIPE_REMOTE", tmp_path.as_uri())
    step = cluster_worker.described(Step(name="s", runs="m/f", version=1, needs={"text": "text"}))
    told = json.loads(
        cluster_worker.work(
            json.dumps(
                {
                    "phipipe": __version__,
                    "task": "t",
                    "topic": "t",
                    "step": step,
                    "inputs": {"text": "ab" * 32},
                }
            )
        )
    )
    error = decoded(told["error"])
    assert isinstance(error, cluster_worker.Missing)
    assert error.name == "text"


def test_unknown_toolchains_are_refused() -> None:
    with pytest.raises(ToolchainError, match="nonesuch"):
        resources.resources((), ("nonesuch",))
    assert "toolchain torch" in resources.resources((), ())


def test_a_worker_is_a_device_only_if_it_can_be(tmp_path: Path) -> None:
    from phipipe import hardware

    other = {"x86_64": "cpu-arm64", "arm64": "cpu-x86_64"}[hardware.architecture()]
    with pytest.raises(TargetError, match="its processor is"):
        resources.resources((other,), ())
    with pytest.raises(TargetError, match="did you mean `intel-npu`"):
        resources.resources(("intel-nqu",), ())
    own = tmp_path / "bench.yaml"
    own.write_text(
        "title: Mine\nunits: [{api: cpu, precisions: [int4]}]\nsources: [https://example.org]\n",
        "utf-8",
    )
    assert "device bench" in resources.resources((str(own),), ())


def test_a_measurement_has_its_worker_for_itself() -> None:
    going: list[str] = []
    seen: list[list[str]] = []

    def step(name: str, measurement: bool, seconds: float) -> None:
        with cluster_worker._turn(measurement):
            going.append(name)
            seen.append(sorted(going))
            time.sleep(seconds)
            going.remove(name)

    planned = [
        ("a", False, 0.3),
        ("b", False, 0.3),
        ("measure", True, 0.2),
        ("c", False, 0.1),
        ("d", False, 0.1),
    ]
    threads = [threading.Thread(target=step, args=one) for one in planned]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert seen == [["a"], ["a", "b"], ["measure"], ["c"], ["c", "d"]] or seen == [
        ["a"], ["a", "b"], ["measure"], ["d"], ["c", "d"]
    ]  # fmt: skip


@pytest.mark.timeout(100)
def test_while_a_worker_installs_a_toolchain_it_does_steps_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phipipe import __version__
    from phipipe.toolchains import environments as toolchain

    tiny = Tiny(tmp_path / "tiny")
    (tiny.locks / "empty.txt").write_text("", "utf-8")
    monkeypatch.setattr(toolchain, "LOCKS", tiny.locks)
    own = {"PHIPIPE_REMOTE": (tmp_path / "shared").as_uri(), "PHIPIPE_WORKER_PATH": str(TESTS)}
    for name, value in (tiny.variables | own).items():
        monkeypatch.setenv(name, value)

    def work(tool: str, measurement: bool = False) -> dict[str, Any]:
        runs = "testing.steps_cheap/count"
        step = Step(
            name=tool,
            runs=runs,
            version=1,
            params={"name": tool},
            toolchain=tool,
            measurement=measurement,
        )
        told = {
            "phipipe": __version__,
            "task": tool,
            "topic": "t",
            "step": cluster_worker.described(step),
        }
        answer: dict[str, Any] = json.loads(cluster_worker.work(json.dumps(told | {"inputs": {}})))
        return answer

    done: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: done.append(work("tiny", measurement=True)))
    try:
        waiting.start()
        wait_until(lambda: tiny.builds() == 1, "the installation")
        assert not work("empty")["cached"]
        assert done == []
        tiny.go_on()
        waiting.join()
        assert [answer["cached"] for answer in done] == [False]
    finally:
        tiny.go_on()
        cluster_worker._place(Settings.read())[1].close()
        cluster_worker._place.cache_clear()

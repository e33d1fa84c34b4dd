"""Places that nobody answers at, or that keep us waiting: named, and given up in bounded time."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from testing import registry_server, shared_store
from testing.fault_proxy import ALWAYS, FaultProxy, Strike
from testing.kitchen import Kitchen
from testing.shell import Run

import phipipe
from phipipe.errors import SourceError
from phipipe.hub import failures
from phipipe.hub.failures import Fault, Pace, Patience, Unreachable

FOR_EVER = {"Retry-After": "99999999"}  # three years


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "PACE", Pace(attempts=3, first_s=0.01, longest_s=1.0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


@pytest.fixture
def closed() -> str:
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def proxy(tmp_path: Path, package: Path) -> Iterator[FaultProxy]:
    """Before a registry that has the package."""
    with (
        registry_server.running(tmp_path / "registry") as host,
        FaultProxy(f"http://{host}") as proxy,
    ):
        phipipe.push(package, f"oci://{proxy.host}/phi:1")
        yield proxy


class Clock(threading.Event):
    """Waits without waiting, and tells the time."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(float(timeout or 0))
        return False

    def monotonic(self) -> float:
        return sum(self.waits)


@pytest.mark.parametrize("asked_s", [None, 20.0, 99999999.0])
def test_a_server_keeps_us_for_minutes_at_most(
    monkeypatch: pytest.MonkeyPatch, asked_s: float | None
) -> None:
    clock, told = Clock(), list[str]()
    monkeypatch.setattr(failures, "PACE", Pace())
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=clock.monotonic))

    def work() -> None:
        raise Fault("busy", asked_s)

    with pytest.raises(Unreachable, match="it: busy"):
        failures.patiently(work, "it", stopped=clock, patience=Patience(told.append))
    assert len(clock.waits) >= 3
    assert max(clock.waits) <= 30.0
    assert sum(clock.waits) <= 120.0
    assert len(told) == sum(wait >= 1 for wait in clock.waits) > 0
    assert told[-1] == f"it: busy; trying again in {clock.waits[-1]:.0f} s"


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("path", ["/manifests/1", "/blobs/sha256"])
def test_a_registry_that_asks_for_years_is_given_up(
    run: Run, proxy: FaultProxy, tmp_path: Path, status: int, path: str
) -> None:
    strike = Strike("status", "GET", path, times=ALWAYS, status=status, headers=FOR_EVER)
    proxy.strikes = [strike]
    began = time.monotonic()
    code, out, err = run("pull", f"oci://{proxy.host}/phi:1", "--out", str(tmp_path / "p"))
    assert (code, out) == (8, "")
    assert time.monotonic() - began < 20
    assert strike.struck >= 3
    assert f"the server answered {status}" in err
    assert "; trying again in 1 s" in err


def test_a_token_that_nobody_gives_out_is_told(
    run: Run, proxy: FaultProxy, closed: str, package: Path
) -> None:
    asks = {"WWW-Authenticate": f'Bearer realm="http://{closed}/token",service="x"'}
    proxy.strikes = [Strike("status", "GET|HEAD", "/v2/", times=ALWAYS, status=401, headers=asks)]
    code, _, err = run("push", str(package), f"oci://{proxy.host}/phi:1")
    assert (code, f"nothing answers at {closed}" in err) == (8, True), err


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize("kind", ["hf", "oci", "s3"])
def test_a_port_that_nothing_listens_at_is_named(
    run: Run,
    closed: str,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    command: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    keys(monkeypatch, f"http://{closed}")
    address = {"hf": "hf://me/phi", "oci": f"oci://{closed}/phi:1", "s3": "s3://nobody/phi"}[kind]
    code, out, err = run(command, *([str(package)] if command == "push" else []), address)
    assert (code, out) == (8, "")
    assert f"nothing answers at {closed}" in err
    assert "try: check " in err
    assert "the same command again" not in err


@pytest.mark.parametrize("kind", ["oci", "s3"])
def test_a_name_that_does_not_resolve_is_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # they would look it up
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    keys(monkeypatch, "http://registry.invalid:5000")
    address = {"oci": "oci://registry.invalid:5000/phi:1", "s3": "s3://nobody/phi"}[kind]
    with pytest.raises(SourceError, match=r"the name registry\.invalid does not resolve"):
        phipipe.pull(address, tmp_path / "p")


@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address alone")
def test_a_server_without_tls_does_answer(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.2", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"127.0.0.2:{server.server_port}"
        with pytest.raises(SourceError, match=f"{there} does not answer as TLS has it"):
            phipipe.pull(f"oci://{there}/phi:1", tmp_path / "p")
        server.shutdown()


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and this machine has no"),
        (("AWS_ACCESS_KEY_ID",), "no credentials: AWS_SECRET_ACCESS_KEY is not set"),
        (("AWS_SECRET_ACCESS_KEY",), "no credentials: AWS_ACCESS_KEY_ID is not set"),
    ],
)
def test_credentials_that_are_missing_are_named(
    run: Run,
    server: str,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    closed: str,
    given: tuple[str, ...],
    words: str,
    command: str,
) -> None:
    address = shared_store.bucket(server, tmp_path, monkeypatch)
    for name in {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - {*given}:
        monkeypatch.delenv(name)
    # the service that a machine with a role has, on none of ours
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{closed}")
    code, out, err = run(command, *([str(package)] if command == "push" else []), address)
    assert (code, out) == (8, "")
    assert words in err
    assert "try: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in err
    assert "/latest/" not in err


def keys(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", shared_store.SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")

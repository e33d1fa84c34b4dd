"""What goes wrong between us and a hub, a registry, a bucket: each push and pull ends in success or
in one typed error, and the address shows the old state or the whole new one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from testing import registry_server, shared_store
from testing.fault_proxy import ALWAYS, FaultProxy, Strike
from testing.hub_writes import WritableHub
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import PhipipeError, SourceError
from phipipe.hub import exchange, failures

KINDS = ("hf", "oci", "s3")
Aim = dict[str, tuple[str, str]]  # kind of place → method and path
BLOB: Aim = {
    "hf": ("PUT", "/lfs/"),
    "oci": ("PUT", "/blobs/uploads/"),
    "s3": ("PUT", r"model\.onnx\.data"),
}
SHOW: Aim = {
    "hf": ("POST", "/commit/"),
    "oci": ("PUT", "/manifests/v1"),
    "s3": ("PUT", r"/manifest\.json"),
}
LOOK: Aim = {
    "hf": ("GET", "/revision/"),
    "oci": ("GET", "/manifests/v1"),
    "s3": ("GET|HEAD", r"/manifest\.json"),
}
READ: Aim = {
    "hf": ("GET", r"model\.onnx\.data"),
    "oci": ("GET", "/blobs/sha256"),
    "s3": ("GET", r"model\.onnx\.data"),
}
DIGEST = "sha256:" + "0" * 64
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


@dataclass(frozen=True)
class Fault:
    """What strikes where, how often, and whether the command succeeds all the same."""

    name: str
    aim: Aim
    strike: Callable[[str, str], Strike]
    succeeds: bool
    kinds: tuple[str, ...] = KINDS


def told(status: int, times: int = 1, **headers: str) -> Callable[[str, str], Strike]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda m, p: Strike("status", m, p, times=times, status=status, headers=named)


def broken(kind: str, times: int = 1, at: int = 1000) -> Callable[[str, str], Strike]:
    return lambda m, p: Strike(kind, m, p, times=times, at=at)


def lied(name: str, value: str) -> Callable[[str, str], Strike]:
    return lambda m, p: Strike("header", m, p, times=ALWAYS, headers={name: value})


LIE = lied("Docker-Content-Digest", DIGEST)
PUSHES = (
    Fault("cut while a file is sent", BLOB, broken("cut-request"), True),
    Fault("too many requests", BLOB, told(429, Retry_After="1"), True),
    Fault("500 once", BLOB, told(500), True),
    Fault("503 twice", BLOB, told(503, 2), True),
    Fault("503 for ever", BLOB, told(503, ALWAYS), False),
    Fault("cut for ever", BLOB, broken("cut-request", ALWAYS, 20), False),
    Fault("no right to write", BLOB, told(403, ALWAYS), False),
    Fault("a token that is not known", LOOK, told(401, ALWAYS), False),
    Fault("503 when it is shown", SHOW, told(503, ALWAYS), False),
    Fault("the last answer is lost", SHOW, broken("lost"), True),
    Fault("a digest that is none of what was sent", BLOB, LIE, False, ("oci",)),
    Fault("a manifest with another digest", LOOK, LIE, False, ("oci",)),
)  # fmt: skip
PULLS = (
    Fault("cut while a file comes", READ, broken("cut-answer"), True),
    Fault("too many requests", READ, told(429, Retry_After="1"), True),
    Fault("500 once", READ, told(500), True),
    Fault("503 for ever", READ, told(503, ALWAYS), False),
    Fault("other bytes for ever", READ, broken("other-bytes", ALWAYS), False),
    Fault("another length for ever", READ, broken("longer", ALWAYS), False),
    Fault("no right to read", READ, told(403, ALWAYS), False),
    Fault("gone", READ, told(404, ALWAYS), False),
    Fault("no repository", LOOK, told(404, ALWAYS, X_Error_Code="RepoNotFound"), False),
    Fault("a manifest with another digest", LOOK, LIE, False, ("oci",)),
)  # fmt: skip


# what is in every run; the rest costs minutes
USUAL = (
    ("cut while a file is sent", "oci"),
    ("503 for ever", "hf"),
    ("cut for ever", "hf"),
    ("the last answer is lost", "s3"),
    ("no right to write", "oci"),
    ("cut while a file comes", "hf"),
    ("other bytes for ever", "oci"),
    ("no repository", "s3"),
)


def table(faults: tuple[Fault, ...]) -> list[object]:
    return [
        pytest.param(
            kind,
            fault,
            id=f"{kind}-{fault.name}",
            marks=() if (fault.name, kind) in USUAL else pytest.mark.full,
        )
        for fault in faults
        for kind in fault.kinds
    ]


@dataclass
class There:
    """A place, by the address that goes through the proxy, and what a test needs to change."""

    address: str
    proxy: FaultProxy


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=3, first_s=0.01, stall_s=5.0))
    library = exchange.library()
    monkeypatch.setattr(library.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    waits = {**(library.utils.http_backoff.__kwdefaults__ or {}), "base_wait_time": 0.01}
    monkeypatch.setattr(library.utils.http_backoff, "__kwdefaults__", waits)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))


@pytest.fixture
def there(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], There]]:
    with contextlib.ExitStack() as stack:

        def start(kind: str) -> There:
            if kind == "hf":
                hub = stack.enter_context(WritableHub())
                proxy = stack.enter_context(FaultProxy(hub.url))
                hub.public_url = proxy.url
                monkeypatch.setenv("HF_ENDPOINT", proxy.url)
                monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
                return There("hf://someone/tiny-phi", proxy)
            if kind == "oci":
                registry = registry_server.running(tmp_path / "registry")
                host = stack.enter_context(registry)
                proxy = stack.enter_context(FaultProxy(f"http://{host}"))
                return There(f"oci://{proxy.host}/team/phi:v1", proxy)
            server = request.getfixturevalue("server")
            address = shared_store.bucket(server, tmp_path, monkeypatch)
            proxy = stack.enter_context(FaultProxy(server))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            return There(address, proxy)

        yield start


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Kitchen(tmp_path_factory.mktemp("old")).cook()


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kitchen = Kitchen(tmp_path_factory.mktemp("new"))
    (kitchen.artifact / "merges.txt").write_bytes(b"a b\n")
    (kitchen.artifact / "model.onnx.data").write_bytes(b"\x05\x00\xff" * 30_000)
    return kitchen.cook()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ends(call: Callable[[], object]) -> bool:
    """Whether it succeeds; a failure is one that users are told, with the code for the network."""
    failed: PhipipeError | None = None
    try:
        call()
    except PhipipeError as error:
        failed = error
    if failed is None:
        return True
    assert failed.exit_code == SourceError.exit_code, failed.message
    assert WritableHub.TOKEN not in f"{failed.message} {failed.hint}"
    return False


@pytest.mark.parametrize(("kind", "fault"), table(PUSHES))
def test_a_push_that_breaks_shows_the_old_package_or_the_new_one(
    there: Callable[[str], There],
    tmp_path: Path,
    old: Path,
    new: Path,
    kind: str,
    fault: Fault,
) -> None:
    place = there(kind)
    phipipe.push(old, place.address, private=False if kind == "hf" else None)
    strike = fault.strike(*fault.aim[kind])
    place.proxy.strikes = [strike]
    succeeded = ends(lambda: phipipe.push(new, place.address, force=True))
    assert strike.struck > 0
    assert succeeded == fault.succeeds
    place.proxy.strikes = []
    phipipe.pull(place.address, tmp_path / "seen")
    assert content(tmp_path / "seen") in ([content(new)] if succeeded else [content(old)])
    assert phipipe.push(new, place.address, force=True).state == ("same" if succeeded else "pushed")
    phipipe.pull(place.address, tmp_path / "then")
    assert content(tmp_path / "then") == content(new)


@pytest.mark.parametrize(("kind", "fault"), table(PULLS))
def test_a_pull_that_breaks_gives_the_whole_package_or_none(
    there: Callable[[str], There], tmp_path: Path, new: Path, kind: str, fault: Fault
) -> None:
    place = there(kind)
    phipipe.push(new, place.address, private=False if kind == "hf" else None)
    strike = fault.strike(*fault.aim[kind])
    place.proxy.strikes = [strike]
    succeeded = ends(lambda: phipipe.pull(place.address, tmp_path / "a" / "p"))
    assert strike.struck > 0
    assert succeeded == fault.succeeds
    assert (tmp_path / "a" / "p").exists() == succeeded
    place.proxy.strikes = []
    phipipe.pull(place.address, tmp_path / "a" / "p")
    assert content(tmp_path / "a" / "p") == content(new)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["p"]


@pytest.mark.crash
@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aim", [BLOB, SHOW], ids=["blob", "show"])
@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_a_push_that_is_killed_is_continued(
    there: Callable[[str], There], tmp_path: Path, old: Path, new: Path, kind: str, aim: Aim
) -> None:
    place = there(kind)
    phipipe.push(old, place.address, private=False if kind == "hf" else None)
    method, path = aim[kind]
    process: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        process[0].send_signal(signal.SIGKILL)

    place.proxy.strikes = [Strike("call", method, path, call=kill)]
    words = ["push", str(new), place.address, "--force"]
    process.append(subprocess.Popen([sys.executable, "-m", "phipipe", *words]))
    assert process[0].wait(120) == -signal.SIGKILL
    place.proxy.strikes = []
    phipipe.pull(place.address, tmp_path / "seen")
    assert content(tmp_path / "seen") in (content(old), content(new))
    phipipe.push(new, place.address, force=True)
    phipipe.pull(place.address, tmp_path / "then")
    assert content(tmp_path / "then") == content(new)


@pytest.mark.crash
@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(os.name == "nt", reason="limits as POSIX has them")
def test_a_pull_onto_a_full_disk_is_told_and_continued(
    there: Callable[[str], There], tmp_path: Path, new: Path, kind: str
) -> None:
    import resource

    place = there(kind)
    phipipe.push(new, place.address, private=False if kind == "hf" else None)
    words = ["pull", place.address, "--out", str(tmp_path / "a" / "p")]
    full = subprocess.run(
        [sys.executable, "-m", "phipipe", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert (full.returncode, full.stdout) == (9, ""), full.stderr
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "a" / "p").exists()
    phipipe.pull(place.address, tmp_path / "a" / "p")
    assert content(tmp_path / "a" / "p") == content(new)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["p"]

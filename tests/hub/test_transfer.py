"""A file arrives whole or not at all, whatever the server does."""

from __future__ import annotations

import hashlib
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.hub_server import Fault, Hub
from testing.places import ROOT

from phipipe.errors import Interrupted, SourceError
from phipipe.hub import exchange, failures, transfer
from phipipe.hub.exchange import Address
from phipipe.hub.failures import Pace
from phipipe.hub.published import Published

DATA = random.Random(7).randbytes(3_000_000)
FILE = Published("weights.safetensors", len(DATA), "sha256", hashlib.sha256(DATA).hexdigest())


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        failures,
        "PACE",
        Pace(attempts=4, first_s=0.01, longest_s=0.02, stall_s=1.0, asked_s=0.3),
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({FILE.name: DATA}) as running:
        yield running


def address(hub: Hub, token: str | None = None) -> Address:
    url = f"{hub.url}/{hub.repo}/resolve/{hub.commit}/{FILE.name}"
    return Address(url, lambda status, headers: SourceError(f"refused with {status}"), token)


def fetch(hub: Hub, path: Path, token: str | None = None) -> bytes:
    """The file; what was said of its bytes meanwhile adds up to its size."""
    counts: list[int] = []
    with exchange.client() as pool:
        transfer.fetch(pool, address(hub, token), FILE, path, counts.append)
    assert sum(counts) == FILE.size
    return path.read_bytes()


def test_a_file_arrives(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path / "part") == DATA
    assert hub.sent(FILE.name) == len(DATA)


PASSING = [
    [Fault("cut", at=1_000_000)],
    [Fault("cut", at=at) for at in (0, 1, 65_536, 700_000)],
    [Fault("wrong-bytes")],
    [Fault("wrong-size")],
    [Fault("longer")],
    [Fault("cut", at=500_000), Fault("no-range")],
    [Fault("cut", at=500_000), Fault("no-range", at=9), Fault("cut", at=2)],
    [Fault("cut", at=500_000), Fault("wrong-range")],
    [Fault("status", status=429, headers={"Retry-After": "0"})],
    [Fault("status", status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
    [Fault("status", status=status) for status in (500, 502, 503)],
    [Fault("cut", at=500_000), Fault("status", status=416)],
    [Fault("stall", at=300_000)],
    [Fault("gzip")],
]


@pytest.mark.parametrize("faults", PASSING, ids=lambda faults: "-".join(f.kind for f in faults))
def test_what_passes_is_survived(hub: Hub, tmp_path: Path, faults: list[Fault]) -> None:
    hub.faults[FILE.name] = list(faults)
    assert fetch(hub, tmp_path / "part") == DATA


LASTING = [
    (Fault("wrong-bytes"), "twice with another sha256"),
    (Fault("wrong-size"), "were published"),
    (Fault("longer"), "more than the published"),
    (Fault("cut", at=0), "connection"),
    (Fault("status", status=503), "answered 503"),
    (Fault("status", status=429), "answered 429"),
    (Fault("status", status=403), "refused with 403"),
    (Fault("status", status=410), "refused with 410"),
    (Fault("stall"), "no answer"),
    (Fault("html"), "web page"),
    (Fault("gzip"), "compressed"),
    (Fault("wrong-range"), "asked for those from"),
    (Fault("redirect", to="ftp://somewhere/file"), "no address"),
    (Fault("redirect", to="http://127.0.0.1:99999/file"), "no address"),
    (Fault("redirect", to="http://[/file"), "no address"),
    (Fault("redirect", to="http://files.example/file"), "anybody can read"),
    (Fault("redirect", to="/someone/tiny/resolve/main/weights.safetensors"), "redirects"),
]


@pytest.mark.parametrize(
    ("fault", "words"), LASTING, ids=lambda value: getattr(value, "kind", None)
)
def test_what_lasts_is_an_error_that_says_so_and_never_a_wrong_byte(
    hub: Hub, tmp_path: Path, fault: Fault, words: str
) -> None:
    hub.faults[FILE.name] = [Fault("cut", at=100_000)] + [fault] * 20
    with pytest.raises(SourceError, match=words):
        fetch(hub, tmp_path / "part")
    kept = (tmp_path / "part").read_bytes() if (tmp_path / "part").exists() else b""
    assert len(kept) < len(DATA)
    assert DATA.startswith(kept)


def test_a_partial_file_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(DATA[:2_000_000])
    assert fetch(hub, tmp_path / "part") == DATA
    assert hub.sent(FILE.name) == 1_000_000


@pytest.mark.parametrize("kept", [b"x" * 1000, DATA + b"x", DATA[:-1] + b"x"])
def test_a_spoiled_partial_file_is_found_out(hub: Hub, tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "part").write_bytes(kept)
    assert fetch(hub, tmp_path / "part") == DATA


def test_a_complete_partial_file_asks_for_nothing(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(DATA)
    assert fetch(hub, tmp_path / "part") == DATA
    assert not hub.seen


def test_a_small_file_is_judged_by_gits_hash(tmp_path: Path) -> None:
    data = b'{"a": 1}'
    digest = hashlib.sha1(b"blob 8\0" + data).hexdigest()
    (tmp_path / "file").write_bytes(data)
    assert Published("config.json", 8, "git-sha1", digest).matches(tmp_path / "file")
    assert not Published("config.json", 8, "git-sha1", "0" * 40).matches(tmp_path / "file")


def test_a_token_never_follows_a_redirect_to_another_host(hub: Hub, tmp_path: Path) -> None:
    with Hub({FILE.name: DATA}) as other:
        hub.faults[FILE.name] = [Fault("redirect", to=other.url)]
        assert fetch(hub, tmp_path / "part", token="hf_canary") == DATA
        assert [seen.token for seen in hub.seen] == ["hf_canary"]
        assert [seen.token for seen in other.seen] == [None]


def test_a_token_follows_a_redirect_to_the_same_host(hub: Hub, tmp_path: Path) -> None:
    hub.faults[FILE.name] = [Fault("redirect", to=hub.url)]
    assert fetch(hub, tmp_path / "part", token="hf_canary") == DATA
    assert [seen.token for seen in hub.seen] == ["hf_canary"] * 2


def test_a_token_is_shown_nowhere(hub: Hub) -> None:
    assert "hf_canary" not in repr(address(hub, "hf_canary"))


def test_a_secure_address_never_redirects_to_a_plain_one() -> None:
    assert exchange.is_private("https://hub.example")
    assert exchange.is_private("http://127.0.0.1:80")
    assert not exchange.is_private("http://hub.example")


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    refused = ssl.SSLCertVerificationError("no")
    refused.verify_message = "self-signed certificate"
    error = exchange.http().ConnectError("broken")
    error.__cause__ = refused
    with pytest.raises(SourceError, match="self-signed") as told:
        failures.fault_of(error)
    assert "SSL_CERT_FILE" in str(told.value.hint)


def test_a_server_that_asks_for_time_gets_it(hub: Hub, tmp_path: Path) -> None:
    waits: list[float] = []

    class Watch(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(float(timeout or 0))
            return False

    hub.faults[FILE.name] = [Fault("status", status=429, headers={"Retry-After": "7"})]
    with exchange.client() as pool:
        transfer.fetch(pool, address(hub), FILE, tmp_path / "part", stopped=Watch())
    assert waits == [0.3]  # of the 7 s, what the pace allows


def test_a_head_is_read_alone_whether_ranges_work_or_not(hub: Hub) -> None:
    with exchange.client() as pool:
        assert transfer.span(pool, address(hub), FILE, 1000) == DATA[:1000]
        assert hub.sent(FILE.name) == 1000
        hub.faults[FILE.name] = [Fault("no-range"), Fault("cut", at=10), Fault("status")]
        assert transfer.span(pool, address(hub), FILE, 1000) == DATA[:1000]
        assert transfer.span(pool, address(hub), FILE, 1000) == DATA[:1000]


def test_stopping_ends_a_transfer_and_keeps_its_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.01

    def stop(there: int) -> None:
        if there > 500_000:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        transfer.fetch_all([(address(hub), FILE, tmp_path / "part")], stop)
    kept = (tmp_path / "part").read_bytes()
    assert 500_000 <= len(kept) < len(DATA)
    assert DATA.startswith(kept)


def test_several_files_come_at_once_and_one_failure_ends_all(tmp_path: Path) -> None:
    files = {f"{i}.bin": bytes([i]) * 300_000 for i in range(6)}
    with Hub(files) as hub:
        hub.pause_s = 0.02
        jobs = []
        for name, data in files.items():
            url = f"{hub.url}/{hub.repo}/resolve/{hub.commit}/{name}"
            file = Published(name, len(data), "sha256", hashlib.sha256(data).hexdigest())
            jobs.append(
                (Address(url, lambda s, h: SourceError(f"refused with {s}")), file, tmp_path / name)
            )
        told: list[int] = []
        transfer.fetch_all(jobs, told.append)
        assert told[-1] == 1_800_000
        assert {name: (tmp_path / name).read_bytes() for name in files} == files
        for name in files:
            (tmp_path / name).unlink()
        hub.faults["3.bin"] = [Fault("status", status=404)]
        with pytest.raises(SourceError, match="refused with 404"):
            transfer.fetch_all(jobs, told.append)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300_000), max_size=8),
    start=st.integers(0, 300_000),
    ignore=st.booleans(),
)
def test_any_sequence_of_cuts_ends_in_the_right_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, ignore: bool
) -> None:
    data = DATA[:300_000]
    file = Published(FILE.name, len(data), "sha256", hashlib.sha256(data).hexdigest())
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "part").write_bytes(data[:start])
    with Hub({file.name: data}) as hub:
        hub.faults[file.name] = [Fault("cut", at=max(cut, 1)) for cut in cuts]
        if ignore:
            hub.faults[file.name].append(Fault("no-range"))
        with exchange.client() as pool:
            transfer.fetch(pool, address(hub), file, folder / "part")
        assert (folder / "part").read_bytes() == data
        if not ignore:
            assert hub.sent(file.name) <= len(data) - start  # not one byte twice


STALLED = """
import sys, time
from pathlib import Path
from phipipe.hub import exchange, published, transfer
from phipipe.errors import SourceError

def write(part, data, whole=published.Part.write):
    if part.position > part.file.size / 2:
        time.sleep(60)  # and the server sends whatever there is room for
    whole(part, data)

url, size, digest, stall, *parts = sys.argv[1:]
if stall:
    published.Part.write = write
refuse = lambda status, headers: SourceError(f"refused with {status}")
jobs = [(Path(p), published.Published(Path(p).name, int(size), "sha256", digest)) for p in parts]
wanted = [(exchange.Address(url + file.name, refuse), file, part) for part, file in jobs]
transfer.fetch_all(wanted, lambda there: None)
"""


@pytest.mark.crash
@pytest.mark.parametrize("count", [1, transfer.CONNECTIONS])
def test_after_a_kill_at_most_one_mebibyte_comes_twice(tmp_path: Path, count: int) -> None:
    data = DATA * 8
    parts = [tmp_path / f"{i}.safetensors" for i in range(count)]
    with Hub({part.name: data for part in parts}) as hub:
        hub.buffer_bytes = 2**12  # what waits at the server has not been fetched
        url = f"{hub.url}/{hub.repo}/resolve/{hub.commit}/"

        def command(stall: str) -> list[str]:
            words = [url, len(data), hashlib.sha256(data).hexdigest(), stall, *parts]
            return [sys.executable, "-c", STALLED, *map(str, words)]

        def sent() -> int:
            return sum(hub.sent(part.name) for part in parts)

        with subprocess.Popen(command("stall"), cwd=ROOT) as process:
            before = -1
            while before < sent() or sent() < count * len(data) / 2:
                assert process.poll() is None
                before = sent()
                time.sleep(0.3)
            process.kill()
        subprocess.run(command(""), cwd=ROOT, check=True)
        assert all(part.read_bytes() == data for part in parts)
        unsent = count * 2**16  # whatever its buffer, the server's system takes one segment more
        assert sent() - count * len(data) <= 2**20 + unsent


def test_a_failure_that_leads_back_to_itself_is_still_told() -> None:
    """As one does that is raised again while its own wrapper is handled."""
    inner = ConnectionError("broken")
    try:
        try:
            raise RuntimeError("wrapped") from inner
        except RuntimeError as outer:
            raise inner from outer.__context__
    except ConnectionError as error:
        assert "the connection broke" in str(failures.fault_of(error))  # noqa: PT017

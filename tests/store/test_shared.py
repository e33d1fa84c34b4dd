"""Results shared through a real S3 server on loopback, and through a folder."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.drive import PATHS
from testing.remote_client import attempt, chain, run
from testing.shared_store import SECRET, bucket

from phipipe.errors import RecipeError, ToolchainError
from phipipe.settings import Settings
from phipipe.store import blobs, keys, turns
from phipipe.store import shared as shared_store
from phipipe.store.blobs import Blobs
from phipipe.store.bucket import Bucket
from phipipe.store.shared import SharedStore
from phipipe.store.store import Store

OTHERS = os.environ.get(
    "PHIPIPE_TEST_REMOTES", ""
).split()  # such as az://CONTAINER/PREFIX: tested, too


@pytest.fixture(params=["s3", "file", *OTHERS])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh place to share, set up in the environment."""
    monkeypatch.setenv("REMOTE_CLIENT_LOG", str(tmp_path / "log"))
    if request.param == "file":
        place = (tmp_path / "shared").as_uri()
    elif request.param in OTHERS:
        place = f"{request.param}/{keys.key_of({'for': str(tmp_path), 'at': time.time()})[:20]}"
    else:
        place = bucket(request.getfixturevalue("server"), tmp_path, monkeypatch)
    monkeypatch.setenv("PHIPIPE_REMOTE", place)
    return place


def opened(url: str) -> Any:
    return Bucket(url)._there


def names(url: str, prefix: str) -> list[str]:
    import obstore

    return sorted(entry["path"] for batch in obstore.list(opened(url), prefix) for entry in batch)


def log(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().split() if path.exists() else []


def test_a_second_machine_builds_nothing(url: str, tmp_path: Path) -> None:
    first, said = run(tmp_path / "one", chain(3))
    assert (first.error, said) == (None, [])
    second, said = run(tmp_path / "two", chain(3))
    assert (second.error, said) == (None, [])
    assert log(tmp_path) == ["s0", "s1", "s2"]
    assert [(r.cached, r.shared) for r in second.results.values()] == [(True, True)] * 3
    for name, result in first.results.items():
        assert second.results[name].stored.digest == result.stored.digest
        assert (
            (second.results[name].stored.path / "folder" / "own.txt").read_text().startswith(name)
        )
    assert len(names(url, "blobs")) == 4  # the file that all three have lies there once
    assert len(names(url, "actions")) == 3
    assert names(url, "claims") == []
    third, _ = run(tmp_path / "two", chain(3))
    assert [(r.cached, r.shared) for r in third.results.values()] == [(True, False)] * 3
    assert not list((tmp_path / "two" / "remote").glob("[0-9a-f]" * 64))


def test_what_was_made_before_or_could_not_be_shared_is_shared_by_the_next_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PHIPIPE_REMOTE")
    alone, _ = run(tmp_path / "one", chain(2))
    monkeypatch.setenv("PHIPIPE_REMOTE", url)
    upload = Blobs.upload

    def cut(self: Blobs, sha256: str, path: Path, size: int) -> None:
        if path.name == "own.txt":
            raise OSError("the line is cut")
        upload(self, sha256, path, size)

    with monkeypatch.context() as broken:
        broken.setattr(Blobs, "upload", cut)
        _, (said,) = run(tmp_path / "one", chain(2))
    assert "does not take results" in said
    assert names(url, "actions") == []
    shared, said = run(tmp_path / "one", chain(2))
    assert (shared.all_cached, said) == (True, [])
    assert len(names(url, "actions")) == 2
    other, _ = run(tmp_path / "two", chain(2))
    assert [r.shared for r in other.results.values()] == [True, True]
    assert other.results["s1"].stored.digest == alone.results["s1"].stored.digest
    assert log(tmp_path) == ["s0", "s1"]
    monkeypatch.setattr(SharedStore, "offer", None)  # nobody asks again
    for machine in ("one", "two"):
        again, said = run(tmp_path / machine, chain(2))
        assert (again.error, again.all_cached, said) == (None, True, [])


@pytest.mark.parametrize(
    "harm", ["poisoned", "longer", "cut", "empty", "gone", "record", "alien", "list"]
)
def test_what_is_wrong_there_is_said_built_again_and_replaced(
    url: str, tmp_path: Path, harm: str
) -> None:
    import obstore

    first, _ = run(tmp_path / "one", chain(1))
    key, there = first.results["s0"].key, opened(url)
    name = f"blobs/{keys.hash_file(first.results['s0'].stored.path / 'same.bin')}"
    content = bytes(obstore.get(there, name).bytes())
    action = f"actions/{key}.json"
    record = bytes(obstore.get(there, action).bytes())
    if harm == "gone":
        obstore.delete(there, name)
    elif harm in ("record", "alien", "list"):
        told = json.loads(record)
        changed = {"alien": {"key": "0" * 64}, "list": {"outputs": told["outputs"][:1]}}.get(
            harm, {}
        )
        sealed = keys.seal_record({k: v for k, v in told.items() if k != "sha256"} | changed)
        obstore.put(there, action, record[:-20] if harm == "record" else sealed)
    else:
        changed_content = {
            "poisoned": b"x" + content[1:],
            "longer": content + b"x",
            "cut": content[:-9],
            "empty": b"",
        }
        obstore.put(there, name, changed_content[harm])
    second, said = run(tmp_path / "two", chain(1))
    assert second.error is None
    if harm == "longer":  # what is asked for is right
        assert log(tmp_path) == ["s0"]
        return
    assert log(tmp_path) == ["s0", "s0"]
    assert ["is damaged" in line for line in said] == [True]
    third, said = run(tmp_path / "three", chain(1))
    assert (third.error, said) == (None, [])
    assert third.results["s0"].shared
    assert log(tmp_path) == ["s0", "s0"]
    assert bytes(obstore.get(there, name).bytes()) == content


def test_a_download_goes_on_where_it_was_cut(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PIECE", 3000)
    first, _ = run(tmp_path / "one", chain(1))
    big = first.results["s0"].stored.path / "same.bin"
    digest, content = keys.hash_file(big), big.read_bytes()
    parts = tmp_path / "two" / "remote"
    parts.mkdir(parents=True)
    (parts / digest).write_bytes(content[:20_000])
    asked: list[tuple[int, int]] = []
    take = Bucket.range

    def counted(self: Bucket, name: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        return take(self, name, start, end)

    monkeypatch.setattr(Bucket, "range", counted)
    second, said = run(tmp_path / "two", chain(1))
    assert (second.error, said) == (None, [])
    assert second.results["s0"].shared
    assert sorted(piece for piece in asked if piece[1] >= 2000) == [
        (0, 2000),
        (2000, 3000),
    ]  # of the last two pieces
    assert len(names(url, "blobs")) == 8 + 1


def test_an_upload_goes_on_where_it_was_cut(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PIECE", 3000)
    monkeypatch.setattr(blobs, "UPLOADS", 1)
    monkeypatch.setattr(blobs, "MIB", 1)
    put, sent = Bucket.put, list[str]()

    def cut(self: Bucket, name: str, content: bytes, *, replace: bool = False) -> bool:
        if name.startswith("blobs/") and len(sent) == 5:
            raise OSError("the line is cut")
        sent.extend([name] if name.startswith("blobs/") else [])
        return put(self, name, content, replace=replace)

    with monkeypatch.context() as broken:
        broken.setattr(Bucket, "put", cut)
        _, (said,) = run(tmp_path / "one", chain(1))
    assert "does not take results" in said
    assert len(sent) == 5
    monkeypatch.setattr(Bucket, "put", lambda *a, **k: (sent.append(a[1]), put(*a, **k))[1])
    done, heard = attempt(tmp_path / "one", chain(1), None)
    assert done.all_cached
    assert (
        len([name for name in sent if name.startswith("blobs/")])
        == len(names(url, "blobs"))
        == 8 + 1
    )
    assert [report for _, *report in heard.reports][-1] == [23_000, 23_000, "MiB"]
    other, said = run(tmp_path / "two", chain(1))
    assert (other.results["s0"].shared, said) == (True, [])


def test_a_piece_that_is_wrong_is_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    monkeypatch.setattr(blobs, "PIECE", 3000)
    first, _ = run(tmp_path / "one", chain(1))
    digest = keys.hash_file(first.results["s0"].stored.path / "same.bin")
    obstore.put(opened(url), f"blobs/{digest}.3", b"x" * 3000)
    second, said = run(tmp_path / "two", chain(1))
    assert second.error is None
    assert ["is damaged" in line for line in said] == [True]
    third, said = run(tmp_path / "three", chain(1))
    assert (third.results["s0"].shared, said) == (True, [])
    assert log(tmp_path) == ["s0", "s0"]


def test_unfinished_downloads_are_kept_for_a_week(url: str, tmp_path: Path) -> None:
    run(tmp_path / "one", chain(1))
    parts = tmp_path / "two" / "remote"
    parts.mkdir(parents=True)
    for days in (0, 6, 8):
        (parts / str(days)).write_bytes(b"y" * 1000)
        os.utime(parts / str(days), (time.time() - days * 24 * 60 * 60,) * 2)
    assert run(tmp_path / "two", chain(1))[0].results["s0"].shared
    assert {name for name in "068" if (parts / name).exists()} == {"0", "6"}


def test_a_part_that_is_damaged_costs_one_build_and_nothing_more(url: str, tmp_path: Path) -> None:
    first, _ = run(tmp_path / "one", chain(1))
    digest = keys.hash_file(first.results["s0"].stored.path / "same.bin")
    parts = tmp_path / "two" / "remote"
    parts.mkdir(parents=True)
    (parts / digest).write_bytes(b"y" * 20_000)
    second, said = run(tmp_path / "two", chain(1))
    assert (second.error, len(said)) == (None, 1)
    assert not (parts / digest).exists()
    third, said = run(tmp_path / "three", chain(1))
    assert (third.results["s0"].shared, said) == (True, [])


def test_readers_take_and_give_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", chain(1))
    before = names(url, "")
    monkeypatch.setenv("PHIPIPE_REMOTE_MODE", "read")
    done, said = run(tmp_path / "two", chain(2))
    assert (done.error, said) == (None, [])
    assert [r.shared for r in done.results.values()] == [True, False]
    assert names(url, "") == before


@pytest.mark.full
@pytest.mark.parametrize("clients", [16])
def test_clients_that_start_at_once_build_each_step_once(
    url: str, tmp_path: Path, clients: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": PATHS}
    words = [str(tmp_path / "log"), "3", "0.5"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "testing.remote_client", tmp_path / f"cache{i}", *words],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(clients)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * clients, said
    assert sorted(log(tmp_path)) == ["s0", "s1", "s2"]
    assert names(url, "claims") == []


def test_a_claim_that_nobody_renews_is_taken_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(tmp_path / "one", chain(1))
    import obstore

    key = first.results["s0"].key
    there = opened(url)
    obstore.delete(there, f"actions/{key}.json")
    obstore.put(there, f"claims/{key}", b"somebody who was killed, with a clock of its own")
    monkeypatch.setattr(turns, "STALE_S", 0.5)
    monkeypatch.setattr(turns, "POLL_S", 0.1)
    second, said = run(tmp_path / "two", chain(1))
    assert second.error is None
    assert [line.partition(",")[0] for line in said] == [
        "waiting for another machine",
        "the other machine has gone quiet",
    ]
    assert log(tmp_path) == ["s0", "s0"]
    assert names(url, "claims") == []


def test_a_claim_in_ones_own_name_is_ones_own(url: str, tmp_path: Path) -> None:
    import obstore

    first, _ = run(tmp_path / "one", chain(1))
    key, there, store = first.results["s0"].key, opened(url), Store(tmp_path / "two")
    obstore.delete(there, f"actions/{key}.json")
    obstore.put(there, f"claims/{key}", b"task-7 beat")
    token = turns.OWNER.set("task-7")
    try:
        with SharedStore(url, pytest.fail).turn(key, store) as found:
            assert found is None
    finally:
        turns.OWNER.reset(token)
    assert names(url, "claims") == []


def test_a_claim_that_is_renewed_is_waited_for(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "STALE_S", 0.6)
    monkeypatch.setattr(turns, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(turns, "POLL_S", 0.1)
    ended: list[Any] = []
    other = threading.Thread(target=lambda: ended.append(run(tmp_path / "one", chain(1, 2.5))))
    other.start()
    while not names(url, "claims"):
        pass
    done, said = run(tmp_path / "two", chain(1, 2.5))
    other.join()
    assert done.results["s0"].shared
    assert [line.partition(",")[0] for line in said] == ["waiting for another machine"]
    assert log(tmp_path) == ["s0"]


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """A server that lets nobody do anything, and the requests that it had."""
    had: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            had.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<Error><Code>AccessDenied</Code><Message>{SECRET}</Message></Error>".encode()
            status = 404 if self.command in ("GET", "HEAD") and reading.is_set() else 403
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _refuse

        def log_message(self, format: str, *args: object) -> None: ...

    reading = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.reading = reading  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", had
    server.shutdown()
    thread.join()
    server.server_close()


def remote_at(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_CLIENT_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PHIPIPE_REMOTE", "s3://bucket/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def test_without_permission_the_build_goes_on_alone_and_asks_once(
    refusing: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, had = refusing
    remote_at(endpoint, tmp_path, monkeypatch)
    done, said = run(tmp_path / "one", chain(3))
    assert done.error is None
    assert log(tmp_path) == ["s0", "s1", "s2"]
    assert said == [
        "the shared store s3://bucket/prefix does not answer (permission denied): going on "
        "without it"
    ]
    assert len(had) == 1


def test_nobody_there_is_no_failure_and_secrets_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phipipe.store.bucket.RETRIES", 0)
    remote_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    done, said = run(tmp_path / "one", chain(2))
    assert done.error is None
    assert len(said) == 1
    assert "does not answer" in said[0]
    everything = said[0] + "".join(
        p.read_text("utf-8", "replace") for p in (tmp_path / "one").rglob("*") if p.is_file()
    )
    assert SECRET not in everything


def test_a_secret_in_an_error_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    assert SECRET not in shared_store.describe(
        ValueError(f"denied for {SECRET}\n\nDebug source:\n{SECRET}")
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ftp://somewhere", "starts with s3://"),
        ("bucket", "starts with s3://"),
        ("s3://me:pass@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("file://relative", "starts with s3://"),
    ],
)
def test_addresses_that_make_no_sense(value: str, words: str) -> None:
    with pytest.raises(RecipeError) as wrong:
        Settings.read({"PHIPIPE_REMOTE": value})
    assert words in str(wrong.value.hint)
    assert "pass" not in wrong.value.message


def test_a_mode_that_makes_no_sense() -> None:
    with pytest.raises(RecipeError, match="MODE"):
        Settings.read({"PHIPIPE_REMOTE_MODE": "append"})


def test_without_obstore_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    settings = Settings.read({"PHIPIPE_REMOTE": tmp_path.as_uri()})
    with pytest.raises(ToolchainError) as missing:
        shared_store.connect(settings, print)
    assert "phipipe[remote]" in str(missing.value.hint)
    assert shared_store.connect(Settings.read({}), print) is None


def test_results_that_a_local_step_never_had_are_stored_as_ever(url: str, tmp_path: Path) -> None:
    run(tmp_path / "one", chain(1))
    done, _ = run(tmp_path / "two", chain(1))
    store = Store(tmp_path / "two")
    stored = store.lookup(done.results["s0"].key)
    assert stored is not None
    store.consume(stored)
    record = store.record(stored.key)
    assert {"runs", "params", "step", "usage"} <= set(record)
    assert record["params"]["name"] == "s0"

"""Downloads that have no result yet are seen, counted, and collected when nobody works on them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from phipipe.cli import facts, tables
from phipipe.settings import Settings
from phipipe.store import downloads
from phipipe.store.store import Store

COMMIT = "c0ffee" + "0" * 34
MODEL = f"hub/models/someone/tiny/{COMMIT}"
TEXT = f"hub/datasets/texts/{COMMIT}/0123456789abcdef"


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def part(store: Store, folder: str = MODEL, size: int = 1000, age_s: float = 0.0) -> Path:
    """A partial file, last written ``age_s`` ago, beside what a plan has asked."""
    path = store.root / folder / "parts" / "model.safetensors.part"
    (store.root / folder / "view").mkdir(parents=True, exist_ok=True)
    (store.root / folder / "view" / "config.json").write_text("{}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def put(store: Store, name: str, size: int) -> str:
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "f").write_bytes(name.encode() * size)
        return store.commit(name * 64, scratch / "out", {"runs": "m/f"}).digest


def test_a_download_says_which_how_much_and_since_when(store: Store) -> None:
    part(store, age_s=7200)
    whole = store.root / MODEL / "whole"
    whole.mkdir()
    (whole / "config.json").write_bytes(b"{}")
    part(store, TEXT, 7)
    found = {one.repository: one for one in downloads.unfinished(store.root)}
    assert {name: one.size_bytes for name, one in found.items()} == {
        f"someone/tiny@{COMMIT}": 1002,
        f"texts@{COMMIT}": 7,
    }
    assert time.time() - found[f"someone/tiny@{COMMIT}"].since.timestamp() == pytest.approx(
        7200, abs=60
    )


def test_what_only_a_plan_asked_is_no_download(store: Store) -> None:
    part(store).unlink()
    assert downloads.unfinished(store.root) == []
    part(store, size=0)
    assert downloads.unfinished(store.root) == []
    assert downloads.unfinished(store.root / "nothing") == []


def test_cache_ls_and_doctor_show_them(store: Store) -> None:
    put(store, "a", 10)
    part(store, size=3 * 2**20, age_s=7200)
    newest, oldest = rows = facts.stored(store)
    assert newest.key is not None
    assert newest.key.startswith("a" * 12)
    assert (oldest.key, oldest.repository, oldest.size_bytes) == (
        None,
        f"someone/tiny@{COMMIT}",
        3 * 2**20,
    )
    assert oldest.used.endswith("Z")
    assert (
        f"unfinished download of someone/tiny@{COMMIT}  3.0 MiB  2 h ago   2 h ago"
        in tables.stored(rows)
    )
    assert f"someone/tiny@{COMMIT}, 3.0 MiB" in tables.doctor(facts.doctor(Settings.read()))


def test_they_are_collected_in_the_order_of_their_last_use(store: Store) -> None:
    old, new = part(store, age_s=3600), part(store, TEXT, 500)
    kept = put(store, "a", 300)
    expected = store.gc(900, dry_run=True)
    assert old.exists()
    report = store.gc(900)
    assert report == expected
    assert report.removed == (MODEL,)
    assert (report.freed_bytes, report.kept_bytes) == (1000, 800)
    assert not old.exists()
    assert new.exists()
    assert (store.root / MODEL / "view" / "config.json").exists()
    assert set(store.gc(0).removed) == {TEXT, kept}


@pytest.mark.parametrize("lock", downloads.LOCKS)
def test_one_at_work_stays(store: Store, lock: str) -> None:
    path = part(store)
    with FileLock(store.root / MODEL / lock):
        assert store.gc(0).removed == ()
    assert path.exists()
    assert store.gc(0).removed == (MODEL,)


def test_a_result_on_its_way_into_the_store_stays(store: Store) -> None:
    whole = store.root / MODEL / "whole"
    with downloads.in_use(whole):
        whole.mkdir()
        (whole / "model.safetensors").write_bytes(b"x")
        assert store.gc(0).removed == ()
    assert store.gc(0).removed == (MODEL,)


def test_who_comes_while_it_is_removed_waits_and_begins_anew(store: Store) -> None:
    path = part(store)
    entered: list[bool] = []

    def work() -> None:
        with FileLock(store.root / MODEL / "lock"):
            entered.append(path.exists())

    (store.root / MODEL / "lock").touch()
    with downloads.idle(store.root) as (found, busy):
        assert not busy
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.1)
        assert not entered
        downloads.remove(found[MODEL])
    thread.join()
    assert entered == [False]
    assert path.parent.is_dir()


def test_where_locks_do_nothing_none_is_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = part(store)
    monkeypatch.setattr(store._pins, "locks_work", False)
    assert store.gc(0).removed == ()
    assert path.exists()

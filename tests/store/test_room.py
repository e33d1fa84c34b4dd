"""Where the disk is short, the collection that helps is named, with what it frees."""

from __future__ import annotations

import errno
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from phipipe.cli import doctor
from phipipe.settings import Settings
from phipipe.store import free_space, keys, room
from phipipe.store.store import Store

MIB, GIB = 2**20, 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(own_cache: Path) -> Store:
    """With four results of 40 MiB, of which nothing is needed by a running build."""
    made = Store(own_cache)
    for i in range(4):
        folder = own_cache / f"made-{i}"
        folder.mkdir()
        (folder / "weights").write_bytes(bytes([i]) * 40 * MIB)
        record = {
            "format": keys.FORMAT, "runs": "x/y", "version": i, "params": {}, "inputs": {},
            "tools": {}, "step": "x", "recipe": "",
        }  # fmt: skip
        made.commit(f"{i}" * 64, folder, record)
    return made


def test_the_named_budget_frees_what_is_said(store: Store) -> None:
    found = room.collection(store.root)
    assert found is not None
    assert (found.budget_gib, found.freed_bytes) == (0.0, 160 * MIB)
    assert found.hint.startswith("phipipe cache gc --budget 0 frees about 160 MiB; or set")
    report = store.gc(int(found.budget_gib * GIB), dry_run=True)
    assert report.freed_bytes >= found.freed_bytes


def test_no_more_is_given_up_than_is_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10 * MIB))
    found = room.collection(store.root, 40 * MIB)
    assert found is not None
    assert found.budget_gib == 0.1  # of 0.16 GiB
    assert 30 * MIB <= found.freed_bytes <= 80 * MIB
    short = room.collection(store.root, 2 * GIB)
    assert short is not None
    assert "frees about 160 MiB, not enough" in short.hint


def test_what_running_builds_need_is_not_counted(store: Store) -> None:
    with store.session():
        stored = store.lookup("0" * 64)
        assert stored is not None
        found = room.collection(store.root)
    assert found is not None
    assert found.freed_bytes == 120 * MIB


def test_a_cache_with_nothing_to_give_up_names_no_collection(tmp_path: Path) -> None:
    assert room.collection(tmp_path / "none") is None
    assert room.hint(tmp_path / "none", 5) == "set PHIPIPE_CACHE to a larger disk"


def test_an_error_for_want_of_space_names_the_collection(store: Store) -> None:
    folder = free_space.Folder(store.root, free_space.KEEP_CACHE)
    said = free_space.error([folder], reason="full", needed_bytes=10**15)
    assert re.match(r"phipipe cache gc --budget 0 frees about 160 MiB", str(said.hint))
    other = free_space.error([free_space.Folder(store.root, free_space.KEEP_OUT)], reason="full")
    assert other.hint == free_space.KEEP_OUT
    assert errno.ENOSPC in free_space.FULL


def test_doctor_names_the_collection_where_the_disk_is_short(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10 * MIB))
    own = Settings(cache=store.root, toolchains=store.root)
    hints = [check.hint for check in doctor.disks(own) if check.name.startswith("disk of cache")]
    assert len(hints) == 1
    assert "phipipe cache gc --budget 0 frees about 160 MiB" in str(hints[0])

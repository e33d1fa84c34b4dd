"""Work that was cut short: it is there again, and goes when room is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from phipipe.store.store import Store

KEY = "a" * 64


def cut_short(store: Store, key: str, content: str) -> None:
    with store.lock(key), store.unfinished(key) as folder:
        (folder / "out").mkdir()
        (folder / "out" / "part").write_text(content, "utf-8")
        (folder / "log.txt").write_text("old", "utf-8")
        raise KeyboardInterrupt


def test_what_was_cut_short_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cut_short(store, KEY, "1")
    with store.lock(KEY), store.unfinished(KEY) as folder:
        assert sorted(path.name for path in folder.rglob("*")) == ["out", "part"]
        assert (folder / "out" / "part").read_text("utf-8") == "1"
    assert not folder.exists()


def test_room_is_made_of_what_nobody_works_on(tmp_path: Path) -> None:
    store, others, busy = Store(tmp_path), Store(tmp_path), "b" * 64
    for key in (KEY, busy):
        with pytest.raises(KeyboardInterrupt):
            cut_short(store, key, "x" * 1000)
    with store.lock(busy):
        report = others.gc(0)
    assert report.freed_bytes == 1003
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == [busy]

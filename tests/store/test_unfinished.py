"""Work that was cut short: it is there again, and goes when room is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from phipipe.store.store import Store

KEY = "a" * 64


def test_what_was_cut_short_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.lock(KEY), store.unfinished(KEY) as folder:
        (folder / "out").mkdir()
        (folder / "out" / "part").write_text("1", "utf-8")
        (folder / "log.txt").write_text("old", "utf-8")
        raise KeyboardInterrupt
    with store.lock(KEY), store.unfinished(KEY) as folder:
        assert [path.name for path in folder.rglob("*")] == ["out", "part"]
    assert not folder.exists()


def test_room_is_made_of_what_nobody_works_on(tmp_path: Path) -> None:
    store, others = Store(tmp_path), Store(tmp_path)
    busy = "b" * 64
    for key in (KEY, busy):
        with pytest.raises(KeyboardInterrupt), store.lock(key), store.unfinished(key) as folder:
            (folder / "out").write_bytes(bytes(1000))
            raise KeyboardInterrupt
    with store.lock(busy):
        report = others.gc(0)
    assert report.freed_bytes == 1000
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == [busy]

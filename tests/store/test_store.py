"""The store: what is in it is whole and right, or is noticed and made again."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from testing.tiers import sizes

from phipipe.errors import StepFailed, StoreError
from phipipe.store import files as store_files
from phipipe.store import keys
from phipipe.store.records import Damaged, Records, Stored
from phipipe.store.store import Store

FILES = {"model.bin": b"weights" * 1000, "sub/config.json": b"{}"}
RECORD = {
    "runs": "m/f",
    "version": 1,
    "params": {"bits": 4},
    "inputs": {},
    "tools": {},
    "usage": {"seconds": 1.5},
}


def key(number: int = 0) -> str:
    return keys.key_of({"number": number})


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def put(store: Store, number: int = 0, files: Mapping[str, bytes] = FILES) -> Stored:
    with store.scratch() as scratch:
        return store.commit(key(number), write(scratch / "out", files), RECORD)


def content(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in keys.walk(folder)}


def spoil(path: Path, *, keep_times: bool) -> None:
    """Flip one bit, as a failing disk does (times stay) or a careless program (they change)."""
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    times = (status.st_atime_ns, status.st_mtime_ns + (0 if keep_times else 10**9))
    os.utime(path, ns=times)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns)
        for p in root.rglob("*")
        if "locks" not in p.parts
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def total_bytes(root: Path) -> int:
    return sum(p.lstat().st_size for p in root.rglob("*") if p.is_file())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(root: Path, notes: list[str]) -> Store:
    return Store(root, notes.append)


# Storing and finding


def test_what_was_committed_is_found_by_any_other_process(store: Store, root: Path) -> None:
    stored = put(store)
    other = Store(root)
    assert other.lookup(key()) == other.peek(key()) == stored
    assert content(other.consume(stored)) == FILES
    assert stored.size_bytes == sum(map(len, FILES.values()))


def test_nothing_is_found_where_nothing_was_stored(store: Store) -> None:
    assert store.lookup(key()) is None
    assert store.peek(key()) is None
    with pytest.raises(StoreError, match="nothing is stored"):
        store.record(key())


def test_a_record_says_what_made_a_result(store: Store) -> None:
    stored = put(store)
    record = store.record(key())
    assert {name: record[name] for name in RECORD} == RECORD
    assert (record["format"], record["key"], record["digest"]) == (
        keys.FORMAT,
        key(),
        stored.digest,
    )
    assert [output["path"] for output in record["outputs"]] == sorted(FILES)
    assert record["created"].endswith("+00:00")
    assert list(store.records()) == [record]


def test_stored_files_are_read_only(store: Store) -> None:
    stored = put(store)
    assert all(stat.S_IMODE(status.st_mode) == 0o444 for status in keys.walk(stored.path).values())


def test_equal_content_is_stored_once(store: Store, root: Path) -> None:
    first, second = put(store, 1), put(store, 2)
    assert first.path == second.path
    assert len(list((root / "objects").iterdir())) == 1
    other = Store(root)
    assert [other.lookup(key(n)) for n in (1, 2)] == [first, second]


def test_equal_content_replaces_a_damaged_copy(store: Store, root: Path) -> None:
    spoil(put(store, 1).path / "model.bin", keep_times=True)
    assert content(Store(root).consume(put(Store(root), 2))) == FILES
    assert len(list((root / "quarantine").iterdir())) == 1


def test_a_result_may_change_under_the_same_key(store: Store) -> None:
    put(store)
    second = put(store, files={"other": b"x"})
    assert store.lookup(key()) == second


@pytest.mark.parametrize(
    "left", ["nothing", "a link", "an empty folder", "clashing names", "no folder"]
)
def test_a_step_must_leave_plain_files(store: Store, root: Path, left: str) -> None:
    with store.scratch() as scratch:
        out = scratch / "out"
        if left != "no folder":
            out.mkdir()
        if left == "a link":
            (out / "link").symlink_to("/etc")
        elif left == "an empty folder":
            write(out, {"a": b""})
            (out / "empty").mkdir()
        elif left == "clashing names":
            write(out, {"a": b"", "A": b""})
        with pytest.raises((StepFailed, StoreError)):
            store.commit(key(), out, RECORD)
    assert store.lookup(key()) is None
    assert not [
        *(root / "objects").iterdir(),
        *(root / "actions").iterdir(),
        *(root / "tmp").iterdir(),
    ]


def test_a_hard_linked_output_gets_a_life_of_its_own(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"before")
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "linked").hardlink_to(outside)
        stored = store.commit(key(), scratch / "out", RECORD)
    outside.write_bytes(b"after!")
    assert (stored.path / "linked").read_bytes() == b"before"
    assert (stored.path / "linked").stat().st_nlink == 1


def test_a_file_that_changes_while_it_is_stored_is_noticed(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = store_files.seal

    def late_writer(folder: Path, paths: Any) -> None:
        spoil(folder / "model.bin", keep_times=False)
        seal(folder, paths)

    monkeypatch.setattr(store_files, "seal", late_writer)
    put(store)
    assert Store(root).lookup(key()) is None


def test_the_disk_has_a_file_before_its_name_and_a_name_before_its_record(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a power cut: flush files, rename, flush folder; then the same for the
    record."""
    log: list[tuple[str, Any]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def logged(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        log.append((name, os.fstat(args[0]).st_ino if name == "fsync" else str(args[1])))
        return function(*args)

    monkeypatch.setattr(os, "fsync", lambda *args: logged("fsync", fsync, args))
    monkeypatch.setattr(os, "rename", lambda *args: logged("rename", rename, args))
    monkeypatch.setattr(os, "replace", lambda *args: logged("rename", replace, args))
    stored = put(store)
    to_object, to_record = (
        log.index(("rename", str(stored.path))),
        log.index(("rename", str(root / "actions" / f"{key()}.json"))),
    )

    def flushed(path: Path, start: int, end: int) -> bool:
        return ("fsync", path.stat().st_ino) in log[start:end]

    inside = [stored.path, *stored.path.rglob("*")]
    assert len(inside) == 4
    assert all(flushed(path, 0, to_object) for path in inside)
    assert flushed(root / "objects", to_object, to_record)
    assert flushed(root / "actions" / f"{key()}.json", 0, to_record)
    assert flushed(root / "actions", to_record, len(log))


# Damage


@pytest.mark.parametrize(
    "harm", ["size", "content", "missing file", "extra file", "empty folder", "gone", "replaced"]
)
def test_damage_that_shows_is_noticed_at_lookup_and_built_again(
    store: Store, root: Path, notes: list[str], harm: str
) -> None:
    stored = put(store)
    path = stored.path / "model.bin"
    if harm == "size":
        path.chmod(0o644)
        path.write_bytes(b"short")
    elif harm == "content":
        spoil(path, keep_times=False)
    elif harm == "missing file":
        path.unlink()
    elif harm == "extra file":
        (stored.path / "extra").touch()
    elif harm == "empty folder":
        (stored.path / "extra").mkdir()
    else:
        shutil.rmtree(stored.path)
        if harm == "replaced":
            stored.path.write_text("a file where a folder was")
    fresh = Store(root, notes.append)
    assert fresh.peek(key()) is None
    assert fresh.lookup(key()) is None
    assert notes
    assert not stored.path.is_dir()
    assert not (root / "actions" / f"{key()}.json").exists()
    assert put(fresh).digest == stored.digest
    assert content(Store(root).consume(stored)) == FILES


def test_damage_that_does_not_show_is_noticed_before_use(
    store: Store, root: Path, notes: list[str]
) -> None:
    stored = put(store)
    spoil(stored.path / "model.bin", keep_times=True)
    fresh = Store(root, notes.append)
    found = fresh.lookup(key())
    assert found == stored
    with pytest.raises(Damaged) as caught:
        fresh.consume(found)
    assert caught.value.digest == stored.digest
    assert caught.value.exit_code == 9
    assert notes
    assert fresh.lookup(key()) is None
    assert (
        len(list((root / "quarantine").iterdir())) == 2
    )  # the tree, and the record of what it was


def test_what_is_used_is_hashed_once_per_run(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = put(store)
    hashed: list[str] = []
    hash_file = keys.hash_file
    monkeypatch.setattr(
        keys, "hash_file", lambda path: (hashed.append(path.name), hash_file(path))[1]
    )
    fresh = Store(root)
    assert fresh.lookup(key()) == stored
    assert hashed == []
    fresh.consume(stored)
    fresh.consume(stored)
    assert sorted(hashed) == ["config.json", "model.bin"]


def test_a_touched_file_is_hashed_once_and_its_new_time_remembered(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = put(store)
    os.utime(stored.path / "model.bin", ns=(1, 1))
    before = snapshot(root)
    peeked = Store(root).peek(key())
    assert snapshot(root) == before
    found = Store(root).lookup(key())
    assert found is not None
    assert found == peeked
    assert found.digest == stored.digest
    monkeypatch.setattr(keys, "hash_tree", lambda *_: pytest.fail("hashed again"))
    assert Store(root).lookup(key()) == found


def test_a_damaged_record_is_put_aside(store: Store, root: Path, notes: list[str]) -> None:
    stored = put(store)
    spoil(root / "actions" / f"{key()}.json", keep_times=True)
    fresh = Store(root, notes.append)
    assert fresh.peek(key()) is None
    with pytest.raises(Damaged):
        fresh.record(key())
    assert list(fresh.records()) == []
    assert fresh.lookup(key()) is None
    assert "record" in notes[0]
    assert put(fresh).digest == stored.digest


def test_a_record_that_points_nowhere_is_dropped(store: Store, root: Path) -> None:
    first = put(store, 1)
    put(store, 2)
    store_files.remove(first.path)
    assert store.lookup(key(2)) is None
    assert [record["key"] for record in store.records()] == [key(1)]


def test_what_was_replaced_since_it_was_seen_is_not_put_aside(store: Store, root: Path) -> None:
    """Two processes find the same damage; the slower one must not throw away what the faster one
    has rebuilt."""
    stored = put(store)
    seen = store_files.identity(stored.path)
    stored.path.rename(root / "quarantine" / "by another")
    stored = put(store)
    store._quarantine.put(stored.path, seen, "damaged")
    assert Store(root).lookup(key()) == stored


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_not_being_able_to_look_is_no_damage(
    store: Store, root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = put(store)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(keys, "hash_file", refuse)
        with pytest.raises(StoreError) as caught:
            Store(root).consume(stored)
    assert not isinstance(caught.value, Damaged)
    assert caught.value.hint
    assert Store(root).consume(stored) == stored.path


def test_an_unreadable_disk_block_is_damage(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = put(store)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(keys, "hash_file", refuse)
        with pytest.raises(Damaged):
            Store(root).consume(stored)
    assert put(store).digest == stored.digest


def test_verify_finds_every_damage_once_and_then_none(store: Store, root: Path) -> None:
    bad, good, lost = (put(store, n, {"f": bytes([n]) * 100}) for n in range(3))
    put(store, 3, {"f": b"r"})
    spoil(bad.path / "f", keep_times=True)
    spoil(root / "actions" / f"{key(3)}.json", keep_times=True)
    store_files.remove(lost.path)
    (root / "objects" / "rubbish").write_text("x")
    findings = Store(root).verify()
    assert (
        len(findings) == 4
    )  # two trees (one is rubbish, one had a record), a record, a record without its tree
    assert Store(root).verify() == []
    assert [record["key"] for record in store.records()] == [key(1)]
    assert Store(root).consume(good) == good.path


# Working space, locks, sessions


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_while_a_step_works_is_said_with_numbers(
    store: Store, root: Path, number: int
) -> None:
    with pytest.raises(StoreError) as caught, store.scratch(needed_bytes=12345):
        raise OSError(number, os.strerror(number))
    assert "12345 bytes needed" in caught.value.message
    assert "bytes free" in caught.value.message
    assert caught.value.hint
    assert "PHIPIPE_CACHE" in caught.value.hint
    assert not list((root / "tmp").iterdir())


def test_a_step_s_own_errors_pass_through_scratch_and_lock(store: Store, root: Path) -> None:
    with pytest.raises(FileNotFoundError), store.scratch() as scratch:
        (scratch / "nothing").read_text()
    with pytest.raises(PermissionError), store.lock(key()):
        raise PermissionError
    with pytest.raises(ZeroDivisionError), store.session():
        raise ZeroDivisionError
    assert not [*(root / "tmp").iterdir(), *(root / "pins").iterdir()]
    with store.lock(key()):
        pass


def fork(body: Callable[[], None]) -> int:
    """Run ``body`` in a child process that is then killed as ``kill -9`` does; wait for its end."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


@posix
def test_what_the_dead_leave_is_swept_and_what_the_living_hold_is_not(
    store: Store, root: Path
) -> None:
    def dies() -> None:
        stack = ExitStack()
        write(stack.enter_context(Store(root).scratch()), FILES)
        stack.enter_context(Store(root).session())
        os.kill(os.getpid(), signal.SIGKILL)  # while the stack lives

    with store.scratch() as mine, store.session():
        assert fork(dies) == -signal.SIGKILL
        assert len([p for p in (root / "tmp").iterdir() if p.is_dir()]) == 2
        Store(root)
        assert [p for p in (root / "tmp").iterdir() if p.is_dir()] == [mine]
        assert len([p for p in (root / "pins").iterdir() if p.is_dir()]) == 1
    Store(root)
    assert not [*(root / "tmp").iterdir(), *(root / "pins").iterdir()]


def test_a_lock_without_a_folder_is_kept_for_a_day(store: Store, root: Path) -> None:
    """Its owner may be about to make the folder."""
    young, old = root / "tmp" / f"{'0' * 32}.lock", root / "tmp" / f"{'1' * 32}.lock"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    Store(root)
    assert names(root / "tmp") == [young.name]


@posix
def test_where_locks_do_nothing_nobody_is_taken_for_dead(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    store = Store(root)
    with store.scratch() as mine, store.session():
        stored = put(store)
        other = Store(root)
        assert mine.is_dir()
        assert other.gc(0).removed == ()
        assert stored.path.is_dir()


def test_the_gate_is_never_held_while_content_is_hashed(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_file, hashed, one_at_a_time = keys.hash_file, [], threading.Lock()

    def watched(path: Path) -> str:
        with one_at_a_time, FileLock(root / "locks" / "collect.lock", blocking=False):
            hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(keys, "hash_file", watched)
    with store.session():
        stored = put(store, 1)
        put(store, 2)
        os.utime(stored.path / "model.bin", ns=(1, 1))
        assert Store(root).lookup(key(1))
        Store(root).consume(stored)
        assert Store(root).verify() == []
    assert len(hashed) == 2 * 6


def test_a_folder_that_cannot_be_the_store_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(StoreError) as caught:
            Store(root)
        assert caught.value.exit_code == 9
        assert "PHIPIPE_CACHE" in str(caught.value.hint)


def test_a_store_says_what_it_is(store: Store, root: Path) -> None:
    assert (
        (root / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )
    assert "phipipe cache" in (root / "README.txt").read_text()
    (root / "CACHEDIR.TAG").write_text("Sig")  # its writer was killed
    Store(root)
    assert len((root / "CACHEDIR.TAG").read_text()) > 40


# Leaving the store


PACKAGE = {"manifest.json": b"{}", "model/weights.bin": b"w" * 5000}


def test_a_copy_is_made_once(store: Store, tmp_path: Path) -> None:
    stored, target = put(store, files=PACKAGE), tmp_path / "out" / "package"
    assert store.materialise(stored, target)
    assert content(target) == PACKAGE
    before = snapshot(target)
    assert not store.materialise(stored, target)
    assert snapshot(target) == before
    assert names(target.parent) == ["package"]
    assert {o["path"]: o["mtime_ns"] for o in stored.outputs} == store_files.times(target)
    (target / "model" / "weights.bin").write_bytes(b"the copy is the user's own")


@pytest.mark.parametrize("change", ["content", "missing", "extra", "time", "link"])
def test_a_copy_that_differs_is_replaced(store: Store, tmp_path: Path, change: str) -> None:
    stored, target = put(store, files=PACKAGE), tmp_path / "package"
    store.materialise(stored, target)
    weights = target / "model" / "weights.bin"
    if change == "content":
        weights.write_bytes(b"x" * 5000)
    elif change == "missing":
        weights.unlink()
    elif change == "extra":
        (target / "extra").touch()
    elif change == "time":
        os.utime(weights, ns=(0, 0))
    else:
        weights.unlink()
        weights.symlink_to(stored.path / "model" / "weights.bin")
    assert store.materialise(stored, target)
    assert content(target) == PACKAGE
    assert names(tmp_path) == ["package", "store"]


def test_a_folder_that_phipipe_did_not_write_is_never_replaced(
    store: Store, tmp_path: Path
) -> None:
    stored = put(store, files=PACKAGE)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    write(tmp_path / "full", {"thesis.tex": b"x"})
    for name in ("file", "link", "full"):
        with pytest.raises(StoreError):
            store.materialise(stored, tmp_path / name)
    assert content(tmp_path / "full") == {"thesis.tex": b"x"}
    (tmp_path / "empty").mkdir()
    assert store.materialise(stored, tmp_path / "empty")


def test_damage_never_leaves_the_store(store: Store, root: Path, tmp_path: Path) -> None:
    stored, target = put(store, files=PACKAGE), tmp_path / "package"
    spoil(stored.path / "manifest.json", keep_times=True)
    with pytest.raises(Damaged):
        Store(root).materialise(stored, target)
    assert not target.exists()


@posix
@pytest.mark.parametrize(
    "moment", ["copy", "flush_folder"], ids=["before the swap", "after the swap"]
)
def test_what_a_killed_copy_leaves_is_swept_by_the_next(
    store: Store, root: Path, tmp_path: Path, moment: str
) -> None:
    stored, target = put(store, files=PACKAGE), tmp_path / "out" / "package"
    bystander = write(tmp_path / "out" / ".package.notes", {"a": b""})
    function = getattr(store_files, moment)

    def killed(path: Path, *rest: Any) -> None:
        if moment == "copy" or path == target.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        function(path, *rest)

    def dies() -> None:
        setattr(store_files, moment, killed)
        Store(root).materialise(stored, target)

    assert fork(dies) == -signal.SIGKILL
    assert len(names(tmp_path / "out")) == (
        3 if moment == "copy" else 4
    )  # the remains, their lock, the bystander
    assert store.materialise(stored, target) == (moment == "copy")
    assert names(tmp_path / "out") == [bystander.name, "package"]
    assert content(target) == PACKAGE


def test_a_failing_swap_leaves_the_old_copy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "package"
    store.materialise(put(store, 1, PACKAGE), target)
    rename = os.rename

    def refuse(source: Any, goal: Any, **more: Any) -> None:
        if Path(source).name == "new":
            raise OSError(errno.EIO, "no")
        rename(source, goal, **more)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError):
        store.materialise(put(store, 2, PACKAGE | {"more": b""}), target)
    assert content(target) == PACKAGE


# Size


def test_usage_has_a_row_for_each_record(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    rows = store.usage()
    assert {row.key for row in rows} == {key(1), key(2)}
    assert {(row.runs, row.size_bytes) for row in rows} == {("m/f", 7002)}
    assert all(row.created.tzinfo and row.used >= row.created for row in rows)


def test_the_longest_unused_goes_first_and_a_lookup_is_a_use(store: Store) -> None:
    stored = [put(store, n, {"f": bytes([n]) * 100}) for n in range(3)]
    store.lookup(key(0))
    assert store.gc(250).removed == (stored[1].digest,)
    assert store.gc(250).removed == ()
    assert store.lookup(key(1)) is None
    assert store.lookup(key(2)) == stored[2]


def test_a_dry_run_is_exact_to_the_byte_and_changes_nothing(store: Store, root: Path) -> None:
    for n in range(3):
        put(store, n, {"f": bytes([n]) * 100})
    put(store, 3)
    (root / "actions" / f"{key(3)}.json").unlink()  # an orphan
    put(store, 4, {"f": b"q"})
    spoil(root / "actions" / f"{key(4)}.json", keep_times=True)  # a damaged record
    write(root / "quarantine", {"old/f": b"z" * 77})
    before, size = snapshot(root), total_bytes(root)
    promised = store.gc(150, dry_run=True)
    assert snapshot(root) == before
    report = store.gc(150)
    assert report == promised
    assert report.freed_bytes == size - total_bytes(root)
    assert report.kept_bytes == total_bytes(root / "objects") == 100
    assert not list((root / "quarantine").iterdir())


@posix
def test_the_pins_of_the_dead_hold_nothing(store: Store, root: Path) -> None:
    stored = put(store)

    def dies() -> None:
        other, stack = Store(root), ExitStack()
        stack.enter_context(other.session())
        assert other.lookup(key())
        os.kill(os.getpid(), signal.SIGKILL)

    assert fork(dies) == -signal.SIGKILL
    assert store.gc(0).removed == (stored.digest,)


def test_nothing_is_collected_between_its_tree_and_its_record(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, reports = Records.enter, []

    def slowly(self: Records, written: Path, name: str) -> None:
        reports.append(Store(root).gc(0))
        enter(self, written, name)

    monkeypatch.setattr(Records, "enter", slowly)
    stored = put(store)
    assert [report.removed for report in reports] == [()]
    assert store.lookup(key()) == stored


def test_a_full_disk_can_be_collected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = put(store)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", refuse)
    assert store.gc(0).removed == (stored.digest,)


class Collections(RuleBasedStateMachine):
    """Puts, gets, pins, collections, damage and crashes in any order; the model is a few
    dictionaries."""

    @initialize()
    def start(self) -> None:
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.present: dict[int, Stored] = {}  # what a lookup must find
        self.uses: list[int] = []  # numbers, longest unused first
        self.sessions: list[tuple[Store, ExitStack, set[str]]] = []
        self.store = Store(self.root)

    def teardown(self) -> None:
        for _, stack, _ in self.sessions:
            stack.close()
        shutil.rmtree(self.root)

    @staticmethod
    def files(number: int) -> dict[str, bytes]:
        return {"f": bytes([number // 2]) * (number // 2 * 10 + 1)}  # two keys each share an object

    def use(self, number: int, stored: Stored) -> None:
        self.present[number] = stored
        self.uses = [n for n in self.uses if n != number] + [number]

    def some_store(self, choice: int) -> tuple[Store, set[str]]:
        places = [(self.store, set[str]()), *((store, pins) for store, _, pins in self.sessions)]
        return places[choice % len(places)]

    @rule(number=st.integers(0, 7), choice=st.integers(0, 3))
    def put(self, number: int, choice: int) -> None:
        store, pins = self.some_store(choice)
        stored = put(store, number, self.files(number))
        self.use(number, stored)
        pins.add(stored.digest)

    @rule(number=st.integers(0, 7), choice=st.integers(0, 3))
    def get(self, number: int, choice: int) -> None:
        store, pins = self.some_store(choice)
        found = store.lookup(key(number))
        assert (found is not None) == (number in self.present)
        if found:
            assert content(store.consume(found)) == self.files(number)
            self.use(number, found)
            pins.add(found.digest)

    @precondition(lambda self: len(self.sessions) < 3)
    @rule()
    def open_session(self) -> None:
        store, stack = Store(self.root), ExitStack()
        stack.enter_context(store.session())
        self.sessions.append((store, stack, set()))

    @precondition(lambda self: self.sessions)
    @rule(choice=st.integers(0, 3))
    def close_session(self, choice: int) -> None:
        self.sessions.pop(choice % len(self.sessions))[1].close()

    @rule(number=st.integers(0, 7), busy=st.booleans())
    def crash(self, number: int, busy: bool) -> None:
        """A process dies with a pin and, if busy, amid a build."""

        def dies() -> None:
            store, stack = Store(self.root), ExitStack()
            stack.enter_context(store.session())
            store.lookup(key(number))
            if busy:
                write(stack.enter_context(store.scratch()), FILES)
            os.kill(os.getpid(), signal.SIGKILL)

        assert fork(dies) == -signal.SIGKILL
        if number in self.present:
            self.use(number, self.present[number])

    @rule(budget=st.integers(0, 120))
    def gc(self, budget: int) -> None:
        Store(self.root)  # a command of its own: it sweeps what the dead left
        before = total_bytes(self.root)
        promised = self.store.gc(budget, dry_run=True)
        report = self.store.gc(budget)
        assert report == promised
        assert before - total_bytes(self.root) == report.freed_bytes
        self.check_choice(budget, set(report.removed))
        self.present = {n: s for n, s in self.present.items() if s.digest not in report.removed}
        self.uses = [n for n in self.uses if n in self.present]

    def check_choice(self, budget: int, removed: set[str]) -> None:
        pinned = {digest for _, _, pins in self.sessions for digest in pins}
        assert not removed & pinned
        last = {self.present[n].digest: i for i, n in enumerate(self.uses)}
        sizes = {s.digest: s.size_bytes for s in self.present.values()}
        kept = sizes.keys() - removed
        free = kept - pinned
        assert not free or sum(sizes[digest] for digest in kept) <= budget
        assert all(last[gone] < last[stays] for gone in removed & last.keys() for stays in free)
        if removed:  # no more than had to go: the last one removed was one too many to keep
            newest = max(removed, key=lambda digest: last[digest])
            assert sum(sizes[digest] for digest in kept) + sizes[newest] > budget

    @precondition(lambda self: self.present)
    @rule(choice=st.integers(0, 7))
    def damage(self, choice: int) -> None:
        """A file changes size; all keys that share the tree are missed from then on."""
        numbers = sorted(self.present)
        stored = self.present[numbers[choice % len(numbers)]]
        (stored.path / "f").chmod(0o644)
        (stored.path / "f").write_bytes(b"damaged" * 50)
        sharing = [n for n in numbers if self.present[n].digest == stored.digest]
        for n in sharing:
            assert self.store.lookup(key(n)) is None
            del self.present[n]
        self.uses = [n for n in self.uses if n in self.present]
        for _, _, pins in self.sessions:
            pins.discard(stored.digest)


@pytest.mark.full
@posix
@pytest.mark.parametrize("rounds", sizes(30, 200))
def test_collections_spare_what_is_needed_and_keep_the_budget(rounds: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    checks = [HealthCheck.too_slow]
    run_state_machine_as_test(
        Collections,
        settings=settings(
            max_examples=rounds, stateful_step_count=25, deadline=None, suppress_health_check=checks
        ),
    )

"""The store under kill -9, full and failing disks, flipped bits, and crowds: never a wrong result,
never stuck."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testing.tiers import sizes

from phipipe.errors import StoreError
from phipipe.store import free_space, keys
from phipipe.store.records import Damaged, Stored
from phipipe.store.store import Store

pytestmark = [
    pytest.mark.full,
    pytest.mark.crash,
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and POSIX signals"),
    pytest.mark.timeout(120),
]

STRACE = shutil.which("strace")
STEPS = 4
RECORD = {"runs": "m/f", "version": 1, "params": {}, "inputs": {}, "tools": {}, "usage": {}}


def files(number: int) -> dict[str, bytes]:
    """What step ``number`` makes. The last two steps make the same."""
    seed = random.Random(min(number, STEPS - 2))
    return {
        "manifest.json": b"{}",
        "a/model.bin": seed.randbytes(20_000),
        "a/b/tokenizer": seed.randbytes(300),
    }


def key(number: int) -> str:
    return keys.key_of({"number": number})


def write(folder: Path, number: int) -> Path:
    for name, content in files(number).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an unbroken run stores."""
    folder = tmp_path_factory.mktemp("expected")
    return [keys.tree_digest(keys.hash_tree(write(folder / str(n), n))) for n in range(STEPS)]


def build(store: Store, number: int, counter: Path | None = None, work_s: float = 0.0) -> Stored:
    """As the bench does it: look, lock, look again, build aside, commit."""
    if stored := store.lookup(key(number)):
        return stored
    with store.lock(key(number)):
        if stored := store.lookup(key(number)):
            return stored
        if counter:
            with counter.open("a") as stream:
                stream.write(f"{number}\n")
        with store.scratch() as scratch:
            time.sleep(work_s)
            return store.commit(key(number), write(scratch / "out", number), RECORD)


def run(root: Path, target: Path | None = None) -> list[str]:
    """One whole run: every step made or found, hashed before use, the last one copied out."""
    store = Store(root)
    with store.session():
        found = []
        for number in range(STEPS):
            for _ in range(3):
                try:
                    stored = build(store, number)
                    folder = store.consume(stored)
                except Damaged:
                    continue
                break
            assert {path: (folder / path).read_bytes() for path in keys.walk(folder)} == files(
                number
            )
            found.append(stored.digest)
        if target:
            store.materialise(stored, target)
    return found


def start(body: Callable[[], object]) -> int:
    """Run ``body`` in a child process; its exit code is 0 only if it returns."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not return into pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def ending(child: int, limit_s: float = 60) -> int:
    """Exit code of ``child``, or minus the signal that ended it. A child that hangs fails the
    test."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the child still ran after {limit_s} s")


def check_visible(root: Path, digests: list[str]) -> None:
    """Whatever can be seen is whole: every tree is what its name says, every record what was
    meant."""
    for path in (root / "objects").glob("*"):
        assert keys.tree_digest(keys.hash_tree(path)) == path.name
        assert path.name in digests
    for path in (root / "actions").glob("*"):
        record = keys.open_record(path.read_bytes(), path.stem)
        assert record["digest"] == digests[[key(n) for n in range(STEPS)].index(path.stem)]
        assert (root / "objects" / record["digest"]).is_dir()


def left(*folders: Path) -> list[str]:
    """Names, but for the empty lock file of someone killed just before or after having a folder:
    kept for a day."""
    paths = [path for folder in folders for path in folder.iterdir()]
    return sorted(p.name for p in paths if p.suffix != ".lock" or p.stat().st_size)


def check_clean(root: Path) -> None:
    Store(root)
    assert not left(root / "tmp", root / "pins")


# Killed


def busy(root: Path) -> None:
    """Runs, collections and damage in turn, so that a kill hits all of the code."""
    for turn in range(1000):
        shutil.rmtree(root / "actions" if turn % 3 == 0 else root / "nothing", ignore_errors=True)
        run(root, root.parent / "package")
        Store(root).verify()
        Store(root).gc(25_000 * (turn % 4))


def check_after_kill(root: Path, digests: list[str]) -> None:
    check_visible(root, digests)
    assert ending(start(lambda: same(run(root, root.parent / "package"), digests)), 20) == 0
    check_visible(root, digests)
    check_clean(root)
    package = root.parent / "package"
    assert {path: (package / path).read_bytes() for path in keys.walk(package)} == files(STEPS - 1)
    assert left(root.parent) == ["package", "store"]


def same(found: object, expected: object) -> None:
    assert found == expected


@pytest.mark.parametrize("kills", sizes(30, 500))
def test_killed_at_any_time_nothing_wrong_is_left(
    tmp_path: Path, digests: list[str], kills: int
) -> None:
    dice = random.Random(1)
    for _ in range(kills):
        child = start(lambda: busy(tmp_path / "store"))
        time.sleep(dice.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        assert ending(child) == -signal.SIGKILL
        check_after_kill(tmp_path / "store", digests)


CALLS = ["rename", "fsync", "openat", "mkdir,mkdirat", "chmod,fchmodat", "unlink,unlinkat,rmdir"]
CALLS += ["write", "flock", "utimensat", "getdents64"]


@contextmanager
def strace(child: int, *options: str) -> Iterator[None]:
    """Have strace on ``child`` from now on; usable where ptrace is allowed."""
    if STRACE is None:
        pytest.skip("strace is not installed")
    process = subprocess.Popen(
        [STRACE, "-f", "-qq", "-o", os.devnull, "-p", str(child), *options], stderr=-3
    )
    try:
        while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
            if process.poll() is not None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.skip("strace may not attach to a process here")
            time.sleep(0.001)
        yield
    finally:
        process.wait(60)


def traced(body: Callable[[], object], *options: str) -> int:
    """Run ``body`` in a child under strace; its ending. No system call before ``body`` is
    counted."""
    ready, go = os.pipe()
    child = start(lambda: (os.read(ready, 1), body()))
    try:
        with strace(child, *options):
            os.write(go, b"x")
            return ending(child)
    finally:
        os.close(ready)
        os.close(go)


@pytest.mark.parametrize("kills", sizes(30, 500))
def test_killed_at_any_system_call_nothing_wrong_is_left(
    tmp_path: Path, digests: list[str], kills: int
) -> None:
    dice = random.Random(2)
    killed = 0
    for trial in range(kills):
        calls = CALLS[trial % len(CALLS)]
        option = f"inject={calls}:signal=KILL:when={dice.randint(1, 40)}"
        code = traced(lambda: busy(tmp_path / "store"), "-e", f"trace={calls}", "-e", option)
        killed += code == -signal.SIGKILL
        check_after_kill(tmp_path / "store", digests)
    assert killed == kills


# Flipped bits


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every step in it."""
    root = tmp_path_factory.mktemp("full") / "store"
    run(root)
    return root


@pytest.mark.parametrize("flips", sizes(200, 1000))
def test_every_flipped_bit_is_found_before_use_and_built_again(
    full: Path, digests: list[str], flips: int
) -> None:
    checks = list(HealthCheck)
    options = settings(
        max_examples=flips, deadline=None, suppress_health_check=checks, database=None
    )
    options(given(data=st.data())(lambda data: flip(full, digests, data)))()


def flip(full: Path, digests: list[str], data: st.DataObject) -> None:
    """Flip one bit of the store; see that it is noticed, and that all is built again."""
    kind = data.draw(st.sampled_from(["objects", "actions"]))
    path = data.draw(st.sampled_from(sorted(p for p in (full / kind).rglob("*") if p.is_file())))
    status, raw = path.stat(), bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    notes: list[str] = []
    store = Store(full, notes.append)
    caught = 0
    for number in range(STEPS):
        found = store.lookup(key(number))
        try:
            caught += found is None or not store.consume(found)
        except Damaged:
            caught += 1
    assert caught >= 1
    assert notes
    assert len(list((full / "quarantine").iterdir())) >= 1  # a tree's records go with it
    assert run(full) == digests
    check_visible(full, digests)
    store.gc(10**9)


# Crowds


def crowd(root: Path, counter: Path, work_s: float, digests: list[str]) -> None:
    store = Store(root)
    with store.session():
        found = [build(store, number, counter, work_s) for number in range(STEPS)]
        assert [stored.digest for stored in found] == digests
        for stored in found:
            store.consume(stored)


def test_sixteen_processes_build_each_step_once(tmp_path: Path, digests: list[str]) -> None:
    root, counter = tmp_path / "store", tmp_path / "counter"
    children = [start(lambda: crowd(root, counter, 0.05, digests)) for _ in range(16)]
    assert [ending(child) for child in children] == [0] * 16
    assert sorted(counter.read_text().split()) == [str(n) for n in range(STEPS)]
    check_visible(root, digests)
    check_clean(root)


def test_when_the_builder_is_killed_one_other_builds(tmp_path: Path, digests: list[str]) -> None:
    root, counter = tmp_path / "store", tmp_path / "counter"
    Store(root)
    first = start(lambda: crowd(root, counter, 60, digests))
    while not counter.exists() or not counter.read_text():
        time.sleep(0.001)
    others = [start(lambda: crowd(root, counter, 0.01, digests)) for _ in range(15)]
    time.sleep(0.2)  # they wait by now
    assert counter.read_text().split() == ["0"]
    os.kill(first, signal.SIGKILL)
    assert ending(first) == -signal.SIGKILL
    assert [ending(child) for child in others] == [0] * 15
    assert sorted(counter.read_text().split()) == ["0", *(str(n) for n in range(STEPS))]
    check_visible(root, digests)
    check_clean(root)


def without_locks(body: Callable[[], object]) -> None:
    import fcntl

    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    body()


def test_where_locks_do_nothing_work_is_done_twice_but_never_wrong(
    tmp_path: Path, digests: list[str]
) -> None:
    root, counter = tmp_path / "store", tmp_path / "counter"
    children = [
        start(lambda: without_locks(lambda: crowd(root, counter, 0.02, digests))) for _ in range(16)
    ]
    assert [ending(child) for child in children] == [0] * 16
    assert (
        len(counter.read_text().split()) > STEPS
    )  # else locks worked, and this test shows nothing
    check_visible(root, digests)
    assert run(root) == digests


def collector(root: Path, end: float) -> None:
    dice = random.Random(os.getpid())
    while time.monotonic() < end:
        report = Store(root).gc(dice.choice([0, 21_000, 45_000]))
        assert report.kept_bytes >= 0
        time.sleep(0.002)


def builder(root: Path, end: float, digests: list[str]) -> None:
    """What a session holds must stay: a pinned tree that goes makes ``read_bytes`` in ``run``
    fail."""
    while time.monotonic() < end:
        assert run(root) == digests


def test_collections_during_builds_take_nothing_that_is_used(
    tmp_path: Path, digests: list[str]
) -> None:
    root, end = tmp_path / "store", time.monotonic() + 3
    children = [start(lambda: builder(root, end, digests)) for _ in range(6)]
    children += [start(lambda: collector(root, end)) for _ in range(2)]
    assert [ending(child) for child in children] == [0] * 8
    check_visible(root, digests)
    check_clean(root)
    assert Store(root).gc(0).kept_bytes == 0


# Disks that are full or fail

FAULTS = {
    "fsync": [errno.EIO, errno.ENOSPC, errno.EDQUOT],
    "open": [errno.EMFILE, errno.EROFS, errno.EIO, errno.EACCES, errno.ENOSPC],
    "mkdir": [errno.ENOSPC, errno.EROFS],
    "rename": [errno.ENOSPC, errno.EIO],
    "replace": [errno.ENOSPC, errno.EDQUOT],
    "chmod": [errno.EIO],
}


@contextmanager
def made(store: Store, number: int) -> Iterator[Path]:
    """A step's output, not yet committed."""
    with store.session(), store.scratch() as scratch:
        yield write(scratch / "out", number)


def refusal(body: Callable[[], object]) -> StoreError | None:
    """How ``body`` failed, if it did: only with a StoreError, which says what to do."""
    try:
        body()
    except StoreError as error:
        if not error.hint:
            raise
        return error
    return None


@pytest.mark.parametrize(
    ("call", "number"), [(c, n) for c, numbers in FAULTS.items() for n in numbers]
)
def test_a_failing_system_call_is_a_typed_error_and_leaves_nothing_half(
    tmp_path: Path, digests: list[str], call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single call of ``call`` during a commit and a copy fails in turn, until none is left to
    fail."""
    real = getattr(os, call)
    for when in range(200):
        root, target, calls = tmp_path / str(when), tmp_path / f"{when}-out", 0
        store = Store(root)

        def faulty(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == when + 1:  # noqa: B023
                raise OSError(number, os.strerror(number))
            return real(*args, **more)

        with monkeypatch.context() as patch, made(store, 0) as out:
            patch.setattr(os, call, faulty)
            error = refusal(lambda: store.materialise(store.commit(key(0), out, RECORD), target))  # noqa: B023
        assert error is None or "free" in error.message or number not in free_space.FULL
        check_visible(root, digests)
        assert run(root, target) == digests
        check_clean(root)
        assert sorted(p.name for p in tmp_path.iterdir()) == [str(when), f"{when}-out"]
        shutil.rmtree(root)
        shutil.rmtree(target)
        if calls <= when:
            assert error is None
            assert when >= 1
            return
    pytest.fail("it never came to an end")


def test_a_failing_disk_under_strace_is_a_typed_error(tmp_path: Path, digests: list[str]) -> None:
    """The same from outside, for the calls that Python makes without ``os``."""
    faults = [
        ("write", "ENOSPC"),
        ("write", "EDQUOT"),
        ("fsync", "EIO"),
        ("openat", "EMFILE"),
        ("rename", "EROFS"),
    ]
    for call, name in faults:
        for when in (1, 3, 6):
            root = tmp_path / f"{call}-{name}-{when}"
            option = f"inject={call}:error={name}:when={when}"
            code = traced(lambda: fails_typed(root), "-e", f"trace={call}", "-e", option)  # noqa: B023
            assert code == 0
            assert run(root) == digests
            check_visible(root, digests)
            check_clean(root)


def fails_typed(root: Path) -> None:
    refusal(lambda: run(root))


def test_a_file_over_the_size_limit_is_a_typed_error(tmp_path: Path, digests: list[str]) -> None:
    root = tmp_path / "store"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        with pytest.raises(StoreError, match="no room"):
            run(root)

    assert ending(start(limited)) == 0
    check_visible(root, digests)
    assert run(root) == digests


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def in_namespace(body: Callable[[], object]) -> None:
    """Run ``body`` in a child that may mount, seen by nobody else; skips where that is not
    allowed."""

    def inside() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        new_ns, private = 0x00020000, 0x40000 | 0x4000
        if libc.unshare(new_ns) or libc.mount(b"none", b"/", None, private, None):
            os._exit(77)
        body()

    import ctypes

    code = ending(start(inside), 100)
    if code == 77:
        pytest.skip("mounting needs root")
    assert code == 0


def fill(folder: Path, options: str, digests: list[str]) -> bool:
    """Run on a disk of this size, then on a larger one. Whether the small one was too small."""
    with mounted(folder, options):
        root = folder / "store"
        error = refusal(lambda: run(root))
        assert error is None or re.search("bytes free|no room for more files", error.message)
        check_visible(root, digests)
        subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=1000", folder], check=True)
        check_clean(root)
        used = sum(p.stat().st_size for p in (root / "objects").rglob("*") if p.is_file())
        assert used in {n * 20_302 for n in range(STEPS)}
        assert run(root) == digests
        check_visible(root, digests)
    return error is not None


def test_a_full_disk_is_a_typed_error_at_any_size(tmp_path: Path, digests: list[str]) -> None:
    options = [f"size={kib}k" for kib in range(4, 160, 4)] + [
        f"nr_inodes={n}" for n in range(2, 62)
    ]

    def every_size() -> None:
        failed = [fill(tmp_path / "disk", option, digests) for option in options]
        assert failed[0]
        assert not failed[38]
        assert 60 < sum(failed) < len(options)

    in_namespace(every_size)


def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    def read_only() -> None:
        with mounted(tmp_path / "disk", "size=1m") as folder:
            run(folder / "store")
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            for root in (folder / "store", folder / "new"):
                with pytest.raises(StoreError) as caught:
                    Store(root)
                assert "PHIPIPE_CACHE" in str(caught.value.hint)

    in_namespace(read_only)


def test_a_held_key_says_that_it_waits(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path / "store", notes.append)
    holder = FileLock(tmp_path / "store" / "locks" / f"{key(0)}.lock", thread_local=False)
    holder.acquire()
    store._notify = lambda line: (notes.append(line), holder.release())[0]
    with store.lock(key(0)):
        pass
    assert "waiting" in notes[0]


def test_temporary_folders_are_not_needed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scratch space is the store's own: the system's may be small, and is another file
    system."""
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *_: pytest.fail("used the system's temporary folder")
    )
    assert len(run(tmp_path / "store")) == STEPS

"""A full disk is said as what it is: which folder has no room, and what to do about that one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from testing import drive

from phipipe.cli import uncaught
from phipipe.errors import StoreError
from phipipe.store import free_space


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every case of ``small_disk``, tried where mounting is allowed."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urm", "true"], check=False).returncode:
        pytest.skip("needs namespaces of the user's own")
    command = [
        unshare,
        "-Urm",
        sys.executable,
        "-m",
        "testing.small_disk",
        str(tmp_path_factory.mktemp("disks")),
    ]
    environment = {**os.environ, "PYTHONPATH": drive.PATHS, "UV_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.crash
@pytest.mark.parametrize(
    ("case", "remedy"),
    [
        ("cache", "phipipe cache gc"),
        ("native words", "phipipe cache gc"),
        ("words of memory", "phipipe cache gc"),
        ("mapped", "phipipe cache gc"),
        ("temporary", "TMPDIR"),
        ("package", "--out"),
        ("report", "--out"),
        ("recipe", "another folder"),
        ("files", "phipipe cache gc"),
        ("toolchain", "PHIPIPE_TOOLCHAINS"),
    ],
)
def test_the_full_folder_is_named_with_its_own_remedy(
    told: dict[str, list[str]], case: str, remedy: str
) -> None:
    code, message, hint, disk = told[case]
    assert code == StoreError.exit_code, message
    assert disk in message
    assert remedy in hint
    assert "memory" not in hint
    assert ("no room for more files" in message) == (case == "files")


@pytest.mark.parametrize(
    "said",
    [
        "OSError: [Errno 28] No space left on device",
        "error: failed to write to file `x`: No space left on device (os error 28)",
        "There is not enough space on the disk. (os error 112)",
        "Disk quota exceeded",
        "ENOSPC: write failed",
    ],
)
def test_what_programs_say_of_a_full_disk_is_understood(said: str) -> None:
    assert free_space.SAID.search(said)
    assert not free_space.SAID.search("failed to allocate 12 bytes: out of memory")


@pytest.mark.parametrize("number", sorted(free_space.FULL))
def test_a_full_disk_that_nobody_foresaw_names_a_folder_of_ours(
    number: int, own_cache: Path
) -> None:
    error = uncaught.explained(
        OSError(number, os.strerror(number), str(own_cache / "objects" / "x"))
    )
    assert isinstance(error, StoreError)
    assert f"`{own_cache}`" in error.message
    assert "cache gc" in str(error.hint)
    assert isinstance(uncaught.explained(OSError(number, os.strerror(number))), StoreError)
    elsewhere = uncaught.explained(
        OSError(number, os.strerror(number), str(Path("/no/such/place/out/board.html")))
    )
    assert "--out" in str(elsewhere and elsewhere.hint)


PATHS = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EINVAL,
)
OTHERS = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ENOMEM,
    errno.ECONNRESET,
)


@pytest.mark.parametrize("number", [*PATHS, *OTHERS])
def test_what_the_system_refuses_is_no_bug(number: int) -> None:
    error = uncaught.explained(OSError(number, os.strerror(number), "name"))
    assert error is not None
    assert error.exit_code in (6, 8, 9)


def test_other_ends_that_the_world_causes_are_no_bug_and_a_mistake_of_ours_is() -> None:
    for caused in (
        MemoryError(),
        RecursionError("too deep"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ):
        error = uncaught.explained(caused)
        assert error is not None
        assert error.exit_code != 70
    for ours in (
        ZeroDivisionError(),
        KeyError("x"),
        AttributeError("x"),
        TypeError("x"),
        OSError("nothing known"),
    ):
        assert uncaught.explained(ours) is None

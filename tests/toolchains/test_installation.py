"""An installation ends when we do, however that is, and the next one finds nothing in its way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from testing.tiny_toolchain import Tiny, kill, kills, wait_until

from phipipe.errors import Interrupted, ToolchainError
from phipipe.processes import launcher
from phipipe.settings import Settings
from phipipe.toolchains import environments

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def has_begun(tiny: Tiny) -> bool:
    return any(tiny.toolchains.glob("tiny-*.lock"))


def has_python(tiny: Tiny) -> bool:
    return any(tiny.toolchains.glob("tiny-*/pyvenv.cfg"))


def is_building(tiny: Tiny) -> bool:
    return (tiny.folder / "building.json").exists()


def nothing_lives(tiny: Tiny) -> bool:
    return not tiny.processes()


def launchers(tiny: Tiny) -> list[psutil.Process]:
    return [
        process
        for process in tiny.processes()
        if "phipipe.processes.launcher" in str(process.cmdline())
    ]


def succeeds(tiny: Tiny) -> str:
    """Install it now; what was said."""
    tiny.go_on()
    process = tiny.start()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert tiny.left_overs() == []
    assert nothing_lives(tiny)
    return said


@pytest.mark.parametrize("moment", [has_begun, has_python, is_building])
def test_whoever_is_killed_while_installing_takes_all_of_it_along(
    tiny: Tiny, moment: Callable[[Tiny], bool]
) -> None:
    process = tiny.start()
    wait_until(lambda: moment(tiny), "the moment")
    kill(process)
    wait_until(lambda: nothing_lives(tiny), "the end of uv")
    if moment is is_building:
        assert tiny.left_overs() == []
    succeeds(tiny)


@pytest.mark.full
def test_no_moment_at_which_an_installation_is_killed_spoils_the_next(tmp_path: Path) -> None:
    told = kills(tmp_path / "kills", 3, seed=os.getpid())
    assert told == {"kills": 3, "processes left": 0, "failed installations": 0, "left-overs": 0}


def test_of_two_that_install_at_once_the_other_goes_on_where_one_is_killed(tiny: Tiny) -> None:
    first = tiny.start()
    wait_until(lambda: is_building(tiny), "the first")
    second = tiny.start()
    assert second.stdout is not None
    assert (
        second.stdout.readline()
        == "waiting for another process to install toolchain `tiny` (0 s)\n"
    )
    kill(first)
    wait_until(lambda: tiny.builds() == 2, "the second")
    tiny.go_on()
    assert second.wait(60) == 0
    second.communicate()
    assert tiny.left_overs() == []
    assert nothing_lives(tiny)


@posix
def test_what_lives_on_because_its_launcher_was_killed_too_is_ended_by_the_next(tiny: Tiny) -> None:
    process = tiny.start()
    wait_until(lambda: is_building(tiny), "the build")
    for one in launchers(tiny):
        one.suspend()
    kill(process)
    for one in launchers(tiny):
        one.kill()
    assert not nothing_lives(tiny), "uv and the compiler"
    assert "is incomplete, installing it again" in succeeds(tiny)


@posix
def test_a_launcher_that_is_killed_alone_fails_the_installation_and_leaves_nothing(
    tiny: Tiny,
) -> None:
    process = tiny.start()
    wait_until(lambda: is_building(tiny), "the build")
    for one in launchers(tiny):
        one.kill()
    said = process.communicate(timeout=60)[0]
    assert "toolchain `tiny` could not be installed" in said
    assert process.returncode == 1
    assert nothing_lives(tiny)
    succeeds(tiny)


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_is_asked_to_end_leaves_nothing(tiny: Tiny, how: int) -> None:
    process = tiny.start()
    wait_until(lambda: is_building(tiny), "the build")
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    wait_until(lambda: nothing_lives(tiny), "the end of uv")
    assert tiny.left_overs() == []


def test_an_installation_can_be_stopped_from_another_thread(tiny: Tiny) -> None:
    with pytest.raises(Interrupted):
        environments.ensure("tiny", Settings.read(), print, lambda: is_building(tiny))
    assert tiny.left_overs() == []
    assert nothing_lives(tiny)


def test_who_waits_says_so_at_once_and_again_and_can_be_stopped(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "HEARTBEAT_S", 1.0)
    lock = environments.path_of("tiny", Settings.read()).with_suffix(".lock")
    lock.parent.mkdir()
    said: list[str] = []
    with FileLock(lock), pytest.raises(Interrupted):
        environments.ensure("tiny", Settings.read(), said.append, lambda: len(said) == 3)
    first, *more = said
    assert first == "waiting for another process to install toolchain `tiny` (0 s)"
    assert all(
        line.startswith("still waiting for another process to install toolchain `tiny`")
        for line in more
    )


def test_a_long_installation_says_that_it_goes_on(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "HEARTBEAT_S", 0.01)
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        tiny.go_on(may=is_building(tiny))

    environments.ensure("tiny", Settings.read(), hear)
    assert said[0] == "installing toolchain `tiny` (once)"
    assert {line.partition(" (")[0] for line in said[1:]} == {"still installing toolchain `tiny`"}


def test_a_build_that_fails_says_why_and_leaves_nothing(tiny: Tiny) -> None:
    tiny.go_on()
    (tiny.folder / "fail").touch()
    with pytest.raises(ToolchainError, match="the tensor is crooked"):
        environments.ensure("tiny", Settings.read(), print)
    assert tiny.left_overs() == []
    (tiny.folder / "fail").unlink()
    assert environments.ensure("tiny", Settings.read(), print).packages == {"phipipe-tiny": "1.0"}


def test_who_builds_a_package_knows_the_index_and_no_other_secret(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "JWT",
        "KUBECONFIG",
        "SLACK_WEBHOOK",
        "CMAKE_TOKEN",
    ):
        monkeypatch.setenv(name, "canary-2718")
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", "for the index")
    monkeypatch.setenv("CXX", "clang++")
    tiny.go_on()
    environments.ensure("tiny", Settings.read(), print)
    told = json.loads((tiny.folder / "building.json").read_text("utf-8"))
    assert "canary-2718" not in str(told)
    assert (told["UV_INDEX_ACME_PASSWORD"], told["CXX"]) == ("for the index", "clang++")
    assert (
        told["UV_LOCK_TIMEOUT"] == "3600"
    )  # two that compile llama.cpp at once take longer than uv's own 300 s
    assert not Path(told["TMPDIR"]).exists()


def test_threads_of_one_process_install_it_once(tiny: Tiny) -> None:
    found: list[environments.Installed] = []
    said: list[str] = []

    def install() -> None:
        found.append(environments.ensure("tiny", Settings.read(), said.append))

    threads = [threading.Thread(target=install) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(said) == 3, "all of them")
    tiny.go_on()
    for thread in threads:
        thread.join()
    assert (len(found), tiny.builds()) == (3, 1)


def test_what_is_no_folder_of_ours_is_named(tiny: Tiny) -> None:
    path = environments.path_of("tiny", Settings.read())
    path.parent.mkdir()
    path.write_text("somebody's")
    with pytest.raises(ToolchainError, match="cannot be removed") as caught:
        environments.ensure("tiny", Settings.read(), print)
    assert str(path) in caught.value.message


def test_no_password_stands_in_an_argument(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_ACME_PASSWORD", "canary-2718")
    process = tiny.start()
    wait_until(lambda: is_building(tiny), "the build")
    words = [one.cmdline() for one in tiny.processes()]
    tiny.go_on()
    assert process.wait(60) == 0
    process.communicate()
    assert len(words) >= 3
    assert "canary-2718" not in str(words)

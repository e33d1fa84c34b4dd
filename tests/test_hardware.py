"""What this machine grants us."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from phipipe import hardware


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's limits, none yet, on a machine with 16 CPUs."""
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: list(range(16)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_cores_are_what_a_container_grants(cgroup: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (cgroup / name).parent.mkdir(exist_ok=True)
        (cgroup / name).write_text(text, "ascii")
    assert hardware.cores() == cores


def test_memory_is_what_a_container_grants(cgroup: Path) -> None:
    whole = hardware.memory_bytes()
    assert whole == psutil.virtual_memory().total
    (cgroup / "memory.max").write_text("max\n", "ascii")
    assert hardware.memory_bytes() == whole
    (cgroup / "memory.max").write_text("1073741824\n", "ascii")
    assert hardware.memory_bytes() == 2**30


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity to set"
)
def test_cores_are_those_that_we_may_run_on() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert hardware.cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no affinity to set"
)
def test_a_thread_settles_on_its_share_and_others_go_where_they_were() -> None:
    mine = os.sched_getaffinity(0)

    def settled(count: int) -> int:
        hardware.settle(count)
        return len(os.sched_getaffinity(0))

    for count in (1, len(mine), len(mine) + 1):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(settled, count).result() == min(count, len(mine))
    assert os.sched_getaffinity(0) == mine

"""What this machine is and has, as far as it can be told in milliseconds and without heavy
imports."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY = (("memory.max",), ("memory/memory.limit_in_bytes",))  # v2, v1
# v2, v1: microseconds of each period
_QUOTA = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
_THERE: ContextVar[frozenset[str] | None] = ContextVar("_THERE", default=None)
TOLD = {"cuda": "nvidia", "metal": "apple"}  # APIs whose presence can be told from ``kinds``


def architecture() -> str:
    """The processor's architecture by the name that device files use: x86_64, arm64, else what the
    system says."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def memory_bytes() -> int:
    """What processes can have in all: the machine's memory, or what a container (cgroup) grants of
    it."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for (limit,) in _granted(_MEMORY))])


def available_bytes() -> int:
    """What of ``memory_bytes`` can be had now; a container's own use is not known."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_bytes())


def memory_of(pid: int) -> dict[str, int]:
    """The sizes, in bytes, of /proc/PID/status; 0 for what is not told (a dead process has none).

    Raises:
        OSError: no such process, or not Linux.
    """
    fields = dict.fromkeys(("VmHWM", "VmRSS", "RssAnon", "RssShmem", "VmData", "VmSize"), 0)
    for line in Path(f"/proc/{pid}/status").read_text("ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] = int(value.split()[0]) * 1024
    return fields


def _granted(limits: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """The numbers in each of ``limits`` that this machine has, a limit's in one file or in
    several."""
    for names in limits:
        try:
            yield [
                int(word) for name in names for word in (_CGROUP / name).read_text("ascii").split()
            ]
        except (OSError, ValueError):  # not Linux, another cgroup version, or "max"
            continue


def cores() -> int:
    """How many CPUs this process can keep busy: the machine's, or what affinity or a container
    (cgroup) grants of them.

    More threads than that would spin in each other's way.
    """
    import psutil

    try:
        limits = [len(psutil.Process().cpu_affinity())]
    except AttributeError:  # macOS has none
        limits = [os.cpu_count() or 1]
    limits += [
        math.ceil(quota / period) for quota, period in _granted(_QUOTA) if quota > 0
    ]  # v1 says -1 for all
    return min(limits)


def whole_cores() -> int:
    """``cores``, of which the two logical CPUs of one core count once: arithmetic gains nothing
    from the second."""
    import psutil

    return min(cores(), psutil.cpu_count(logical=False) or 1)


def threads(most: int) -> int:
    """How many threads to compute with: what the parent allows this process, else ``most``."""
    return int(os.environ.get("OMP_NUM_THREADS") or most)


def settle(count: int) -> None:
    """Keep this thread, and those that it starts from now on, on the ``count`` CPUs that are least
    busy.

    For libraries whose threads spin however few one asks for. Nothing is done where the system
    cannot (macOS, Windows).
    """
    import psutil

    if not hasattr(os, "sched_setaffinity"):
        return
    mine = os.sched_getaffinity(0)
    if len(mine) <= count:
        return
    busy = dict(enumerate(psutil.cpu_percent(interval=0.2, percpu=True)))
    os.sched_setaffinity(0, sorted(mine, key=lambda cpu: busy.get(cpu, 0.0))[:count])


@cache
def nvidia() -> str | None:
    """What ``nvidia-smi -L`` lists, a line per GPU; None where there is no GPU or no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    import subprocess  # most commands ask no GPU

    try:
        answer = subprocess.run(
            [tool, "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is none
        return None
    return answer.stdout.strip() if answer.returncode == 0 and "GPU " in answer.stdout else None


def kinds() -> frozenset[str]:
    """What a device file may name in ``machines``: architecture, "nvidia", "apple"; of this
    machine, or inside ``there`` of those that steps run on, with ``device NAME`` for what they are
    besides."""
    elsewhere = _THERE.get()
    if elsewhere is not None:
        return elsewhere
    apple = platform.system() == "Darwin" and architecture() == "arm64"
    own = {architecture(), *(["nvidia"] if nvidia() else []), *(["apple"] if apple else [])}
    return frozenset(own)


@contextlib.contextmanager
def there(others: frozenset[str]) -> Iterator[None]:
    """While this lasts, plans are made for machines of kinds ``others`` instead of this one."""
    token = _THERE.set(others)
    try:
        yield
    finally:
        _THERE.reset(token)


def has(api: str) -> bool:
    """Whether this machine surely has a unit with ``api``: the CPU, CUDA, Metal. Others only a
    runtime can tell."""
    return TOLD.get(api) in kinds() or api == "cpu"


def lacks(api: str) -> str | None:
    """In words what is missing for ``api``, if this machine surely has no such unit; None if it may
    have one."""
    words = {"cuda": "NVIDIA GPU", "metal": "Apple GPU"}
    return words[api] if api in TOLD and not has(api) else None

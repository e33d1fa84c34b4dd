"""What processes have spent so far: processor time, and what went to and from disks.

Bytes are those that the system moved between memory and disks for a process, files mapped into its
memory included: what the system's own cache still held was not read. Linux counts so. Windows
counts all that a process read and wrote, cached or not. macOS tells nobody. A child counts with
its parent from its end on (POSIX), or never (Windows).

Toolchains import this: the standard library alone, and psutil on Windows.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of all processors, in programs and in the system; bytes from and to disks, None
    where the system does not tell."""

    cpu_seconds: float
    read_bytes: int | None
    written_bytes: int | None

    def since(self, before: Spent) -> Spent:
        """What was spent after ``before``."""
        return Spent(
            cpu_seconds=round(max(self.cpu_seconds - before.cpu_seconds, 0.0), 3),
            read_bytes=_less(self.read_bytes, before.read_bytes),
            written_bytes=_less(self.written_bytes, before.written_bytes),
        )

    def usage(self) -> dict[str, float]:
        """For a step's record: all that is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NOTHING = Spent(cpu_seconds=0.0, read_bytes=0, written_bytes=0)


def _less(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(now - before, 0)


def of_process() -> Spent:
    """What this process has spent, with the children that it has waited for (POSIX)."""
    read, written = _of_disks("self")
    return Spent(cpu_seconds=_cpu_seconds(), read_bytes=read, written_bytes=written)


def of_thread() -> Spent:
    """What this thread alone has spent; bytes on Linux only."""
    known = sys.platform == "linux"
    read, written = _of_disks("thread-self") if known else (None, None)
    return Spent(cpu_seconds=time.thread_time(), read_bytes=read, written_bytes=written)


def _cpu_seconds() -> float:
    if sys.platform == "win32":
        return time.process_time()
    import resource

    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _of_disks(who: str) -> tuple[int | None, int | None]:
    """(bytes read, bytes written); ``who`` is a folder of /proc."""
    if sys.platform == "win32":
        with contextlib.suppress(ImportError):  # a toolchain of the user's own may lack it
            import psutil

            with contextlib.suppress(psutil.Error):
                counters = psutil.Process().io_counters()
                return int(counters.read_bytes), int(counters.write_bytes)
        return None, None
    fields = dict(_counters(Path("/proc", who, "io")))
    return fields.get("read_bytes"), fields.get("write_bytes")


def _counters(path: Path) -> Iterator[tuple[str, int]]:
    """The lines of /proc/PID/io (proc(5)); none where there is no such file, or nobody counts."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            yield name, int(value)


IS_WHOLE = os.name == "posix"  # whether ``of_process`` counts children

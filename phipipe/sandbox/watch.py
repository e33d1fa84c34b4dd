"""What a limited child may take, and who sees to it where its system does not."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from phipipe.words import MIB

try:
    import psutil
except ImportError:  # a toolchain of the user's own may lack it
    psutil = None  # type: ignore[assignment]

SAMPLE_S = 0.05
WALL_FACTOR, WALL_S = 15, 60.0  # a busy machine's seconds for one of CPU, and what is on top


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one call may take: CPU time, memory above what the child had before, characters of the
    answer."""

    cpu_s: float
    memory: int
    reply: int = 64 * MIB


RENDER = Bounds(cpu_s=2, memory=256 * MIB, reply=16 * MIB)
IMPORT = Bounds(cpu_s=300, memory=16 * 1024 * MIB)
OPEN = Bounds(cpu_s=20, memory=1024 * MIB)


def for_text(length: int) -> Bounds:
    """For a text of ``length`` characters or tokens: slow tokenizers do 50,000 a second."""
    return Bounds(
        cpu_s=20 + length / 20_000, memory=1024 * MIB + 512 * length, reply=MIB + 256 * length
    )


class Watch:
    """Looks on where the child cannot be limited by its system, or sleeps."""

    def __init__(self, pid: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._deadline = time.monotonic() + WALL_S + WALL_FACTOR * bounds.cpu_s
        self._process = self._cpu = self._rss = None
        if psutil is None:
            return
        with contextlib.suppress(psutil.Error):
            self._process = psutil.Process(pid)
            self._cpu, self._rss = self._seen()

    def over(self) -> str | None:
        """What the child took too much of."""
        if time.monotonic() > self._deadline:
            return f"gave no answer within {WALL_S + WALL_FACTOR * self._bounds.cpu_s:.0f} s"
        if self._process is None or self._cpu is None or self._rss is None:
            return None
        try:
            cpu, rss = self._seen()
        except psutil.Error:  # it is gone: its pipe says so
            return None
        if cpu - self._cpu > self._bounds.cpu_s + SAMPLE_S:
            return excess("cpu", self._bounds)
        return excess("memory", self._bounds) if rss - self._rss > self._bounds.memory else None

    def _seen(self) -> tuple[float, int]:
        assert self._process is not None
        times = self._process.cpu_times()
        return times.user + times.system, self._process.memory_info().rss


def excess(kind: str, bounds: Bounds) -> str:
    """What a child took too much of, in words."""
    words = {
        "cpu": f"computes for more than {bounds.cpu_s:.0f} s",
        "RecursionError": "calls itself without end",
        "OverflowError": "counts further than it may",
        "reply": f"makes more than {bounds.reply} characters",
    }
    return words.get(kind, f"takes more than {bounds.memory // MIB} MiB of memory")

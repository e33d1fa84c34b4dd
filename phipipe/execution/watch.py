"""A step at work: its memory, time and progress, looked at now and then."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from phipipe import hardware, progress
from phipipe.processes.children import tree
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Json

CHUNK = 2**16  # bytes of a log that are read at once
MEMBERS_EVERY = 5  # samples; listing a tree means reading the process table


class Watch:
    """Memory and time of one step, sampled; ``verdict`` says why it has to end."""

    def __init__(self, folder: Path, settings: Settings, on_progress: OnProgress) -> None:
        self._folder, self._settings, self._on_progress = folder, settings, on_progress
        self._start = self._active = time.monotonic()
        self._seen: tuple[int, list[Json]] = (0, [])
        self._cpu_s = 0.0
        self._progress: list[Json] = []
        self._samples = 0
        self._shown = _Shown(folder / "log.txt")
        self.members: list[psutil.Process] = []
        self.peak_rss_bytes = self.peak_anon_bytes = 0
        self.verdict = ""

    def sample(self, pid: int) -> None:
        """Look at the tree once. What processes share counts in each of them."""
        if self._samples % MEMBERS_EVERY == 0:
            self.members = tree(pid)
        self._samples += 1
        rss, anon, cpu_s = 0, 0, 0.0
        for member in self.members:
            with contextlib.suppress(psutil.Error, OSError):
                resident, anonymous = memory_of(member)
                times = member.cpu_times()
                rss, anon = rss + resident, anon + anonymous
                cpu_s += times.user + times.system
        self.count(rss, anon)
        self.report()
        self._judge(anon, cpu_s)

    def count(self, rss: int, anon: int) -> None:
        """So many bytes are, or were, in use at once."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss)
        self.peak_anon_bytes = max(self.peak_anon_bytes, anon)

    def end(self) -> None:
        """The step has ended, in whatever way: hand on what is left of its lines."""
        if progress.is_followed():
            self._shown.go_on(ended=True)

    def report(self) -> None:
        """Hand on the step's progress, if there is news, and the lines that it wrote."""
        if progress.is_followed():
            self._shown.go_on()
        with contextlib.suppress(OSError, ValueError):
            news = json.loads((self._folder / "progress.json").read_text("utf-8"))
            if news != self._progress:
                self._progress = news
                self._on_progress(*news)

    def _judge(self, anon: int, cpu_s: float) -> None:
        now, limits = time.monotonic(), self._settings
        seen = (_size(self._folder / "log.txt"), self._progress)
        # less is a poll, or a heartbeat
        worked = abs(cpu_s - self._cpu_s) > 0.05 * max(now - self._active, 1.0)
        if seen != self._seen or worked:
            self._seen, self._cpu_s, self._active = seen, cpu_s, now
        if limits.memory_limit_gib is not None and anon > limits.memory_limit_gib * 2**30:
            self.verdict = f"it took more than PHIPIPE_MEMORY_LIMIT_GIB={limits.memory_limit_gib:g}"
        elif limits.step_timeout_s is not None and now - self._start > limits.step_timeout_s:
            self.verdict = f"it ran longer than PHIPIPE_STEP_TIMEOUT_S={limits.step_timeout_s:g}"
        elif limits.idle_timeout_s is not None and now - self._active > limits.idle_timeout_s:
            self.verdict = f"it did nothing for PHIPIPE_IDLE_TIMEOUT_S={limits.idle_timeout_s:g}"


class _Shown:
    """How much of a ``log`` somebody who follows it has seen."""

    def __init__(self, log: Path) -> None:
        self._log, self._bytes, self._rest = log, 0, b""

    def go_on(self, *, ended: bool = False) -> None:
        """Hand on the lines that are new. One that has no end yet waits for it, up to ``CHUNK``."""
        with contextlib.suppress(OSError), self._log.open("rb") as stream:
            stream.seek(self._bytes)
            while new := stream.read(CHUNK):
                self._bytes += len(new)
                *lines, self._rest = (self._rest + new).split(b"\n")
                _hand_on(lines)
        if ended or len(self._rest) > CHUNK:
            _hand_on([self._rest])
            self._rest = b""


def _hand_on(lines: Sequence[bytes]) -> None:
    for line in lines:
        # a bar that is drawn again and again: how it looked last
        if text := line.rstrip().rpartition(b"\r")[2].decode("utf-8", "replace"):
            progress.wrote(text)


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """(resident, anonymous and shared) bytes; the two are one where the system does not tell them
    apart."""
    if sys.platform == "linux":
        fields = hardware.memory_of(process.pid)
        return fields["VmRSS"], fields["RssAnon"] + fields["RssShmem"]
    rss = int(process.memory_info().rss)
    return rss, rss


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

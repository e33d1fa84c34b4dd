"""A step at work: its memory, time and progress, looked at now and then."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from phipipe import hardware, progress
from phipipe.processes.children import tree
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from phipipe.steps import Json
from phipipe.words import MIB

CHUNK = 2**16  # bytes of a log that are read at once
GUESS_S = 1.0  # between two looks at a step that says nothing
WORTH_S, WORTH_BYTES = 5.0, 64 * MIB  # less is over before anybody looks
TIME, WRITTEN = "s expected", "MiB expected"
MEMBERS_EVERY = 5  # samples; listing a tree means reading the process table


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a step will take, as far as anybody knows: ``seconds`` as earlier results took, bytes as
    planned."""

    seconds: float | None = None
    output_bytes: int = 0


UNKNOWN = Expected()


class Watch:
    """Memory and time of one step, sampled; ``verdict`` says why it has to end."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        on_progress: OnProgress,
        expected: Expected = UNKNOWN,
    ) -> None:
        self._expected, self._guessed = expected, 0.0
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
        """Hand on the lines that the step wrote and its progress, if there is news; of one that
        says nothing, how far it seems from outside."""
        if progress.is_followed():
            self._shown.go_on()
        with contextlib.suppress(OSError, ValueError):
            news = json.loads((self._folder / "progress.json").read_text("utf-8"))
            if news != self._progress:
                self._progress = news
                self._on_progress(*news)

        if not self._progress:
            self._guess()

    def _guess(self) -> None:
        """How far the step is by the time that it took before; or else by what it has written."""
        now, expected = time.monotonic(), self._expected
        if now - self._guessed < GUESS_S:
            return
        self._guessed = now
        if expected.seconds is not None and expected.seconds >= WORTH_S:
            total = round(expected.seconds)
            self._on_progress(min(int(now - self._start), _nearly(total)), total, TIME)
        elif expected.output_bytes >= WORTH_BYTES:
            total = expected.output_bytes // MIB
            self._on_progress(min(_below(self._folder) // MIB, _nearly(total)), total, WRITTEN)

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


def _nearly(total: int) -> int:
    """What a guess says at most: the end is the step's own to tell."""
    return total * 95 // 100


def _below(folder: Path) -> int:
    """Bytes of all that lies below ``folder``, but for the server's own files; a hole in a file is
    none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                told = os.lstat(os.path.join(parent, name))  # noqa: PTH118 (many files)
                total += getattr(told, "st_blocks", -(-told.st_size // 512)) * 512
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""A worker with the folders of its requests, and the processes that its steps start."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from phipipe.execution.process import Outcome, Request, Server
from phipipe.progress import OnProgress
from phipipe.settings import Settings
from testing.clock import LOAD
from testing.places import TESTS

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def settings(**limits: str) -> Settings:
    return Settings.read({**os.environ, "PHIPIPE_WORKER_PATH": str(TESTS), **limits})


class Bench:
    """A worker and the folders of its requests."""

    def __init__(self, folder: Path, **limits: str) -> None:
        self.folder, self.made = folder, 0
        self.worker = Server(
            Path(sys.executable),
            name="test",
            log_folder=folder / "logs",
            settings=settings(**limits),
        )

    def __call__(
        self,
        step: str,
        inputs: dict[str, Path] | None = None,
        on_progress: OnProgress = lambda *report: None,
        **params: Any,
    ) -> Outcome:
        self.made += 1
        scratch = self.folder / f"request-{self.made}"
        scratch.mkdir(parents=True)
        request = Request(
            step=step, runs=f"testing.steps_cheap/{step}", inputs=inputs or {}, params=params
        )
        return self.worker.run(request, scratch, on_progress)

    @property
    def out(self) -> Path:
        return self.folder / f"request-{self.made}" / "out"

    def logs(self) -> str:
        return "".join(
            p.read_text("utf-8", errors="replace")
            for p in (self.folder / "logs").rglob("*")
            if p.is_file()
        )


def bare_bench(folder: Path, python: Path) -> Bench:
    made = Bench(folder)
    made.worker = Server(python, name="test", log_folder=folder / "logs", settings=settings())
    return made


def family(path: Path) -> list[int]:
    """Process ids that a step wrote down, as soon as they are there."""
    for _ in range(200 * LOAD):
        if path.is_file() and (found := json.loads(path.read_text() or "[]")):
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError("the step did not start")


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def gone(pids: list[int], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds * LOAD
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pids)

"""The step servers of a run: idle ones are lent again, imports and all."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phipipe import hardware
from phipipe.errors import Interrupted
from phipipe.execution.process import Server
from phipipe.settings import Settings
from phipipe.toolchains.environments import Installed


class Servers:
    """``threads`` is what each server may compute with, None for all cores; a measurement's always
    gets all. Logs of failures go to ``logs``.
    """

    def __init__(self, settings: Settings, logs: Path, threads: int | None) -> None:
        self._settings, self._logs, self._threads = settings, logs, threads
        self._idle: dict[str, list[Server]] = defaultdict(list)
        self._busy: set[Server] = set()
        self._changing = threading.Lock()
        self.stopped = False

    @contextmanager
    def lend(self, tool: Installed, own: bool, *, fresh: bool = False) -> Iterator[Server]:
        """A server in toolchain ``tool``; a measurement's ``own``, so that memory is its own, or a
        ``fresh`` one, which has done nothing before. Neither is lent again.

        Raises:
            Interrupted: after ``stop``.
        """
        with self._changing:
            if self.stopped:
                raise Interrupted("stopped")
            idle = self._idle[tool.name]
            alone = own or fresh
            server = idle.pop() if idle and not alone else self._new(tool, own)
            self._busy.add(server)
        try:
            yield server
        except BaseException:
            alone = True  # whatever state it is in, nobody else gets it
            raise
        finally:
            with self._changing:
                self._busy.discard(server)
                if not alone:
                    self._idle[tool.name].append(server)
            if alone:
                server.close()

    def _new(self, tool: Installed, own: bool) -> Server:
        threads = None if own else self._threads
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            threads = threads_per_server(1)
        # Steps that learn take all cores even so, and must not wait for each other by spinning.
        limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads), **PATIENT}
        return Server(
            tool.python,
            name=tool.name,
            log_folder=self._logs,
            settings=self._settings,
            env=limit,
        )

    def dismiss(self, keep: set[str]) -> None:
        """Let idle servers go, but those of the toolchains in ``keep``."""
        with self._changing:
            gone = [name for name in self._idle if name not in keep]
            servers = [server for name in gone for server in self._idle.pop(name)]
        for server in servers:
            server.close()

    def stop(self, force: bool) -> None:
        """Make every running step end soon with ``Interrupted``; with ``force`` at once. No new one
        starts."""
        with self._changing:
            self.stopped = True
            busy = list(self._busy)
        for server in busy:
            server.stop(force)


PATIENT = {"OMP_WAIT_POLICY": "passive"}


def threads_per_server(jobs: int) -> int | None:
    """Threads that each of ``jobs`` servers may use. No more than cores: llama.cpp's threads spin.

    None for all that the machine has: runtimes count them in their own ways, and know of no
    container's share.
    """
    cores = hardware.cores()
    return max(1, cores // jobs) if jobs > 1 or cores < (os.cpu_count() or 1) else None

"""A process in a toolchain that answers in lines of JSON: started, heard, watched and ended."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from phipipe.chat import process
from phipipe.errors import PhipipeError, decoded
from phipipe.processes.children import own_group, python_command, read_lines, reap
from phipipe.settings import Settings
from phipipe.steps import Json

STOP_S = 5.0  # how long a process may take to end after it was killed


class Peer:
    """The process, in a group of its own: Ctrl-C is for us. One thread may hear it, any may send.

    Attributes:
        ready: what it said when it was.
    """

    def __init__(
        self, python: Path, request: Mapping[str, Json], settings: Settings, call: str
    ) -> None:
        """Start the process in ``python`` that does ``call`` for ``request`` (``chat.exchange``),
        and wait until it is ready.

        Raises:
            PhipipeError: it cannot be started, or says why it cannot begin.
        """
        self._request, self._limit = request, process.memory_limit(settings)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(
            prefix="phipipe-chat-", ignore_cleanup_errors=True
        )
        self._home = Path(self._folder.name)
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = self._started(python, settings, call)
            self.ready = self._until_ready()
        except BaseException:
            self.close()
            raise

    def _started(self, python: Path, settings: Settings, call: str) -> subprocess.Popen[str]:
        home = self._home
        (home / process.REQUEST).write_text(json.dumps(dict(self._request)), "utf-8")
        try:
            started = subprocess.Popen(
                python_command(python, call, str(home)),
                cwd=home,
                env=process.environment_in(home, settings),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what is said before ``log.txt`` is there
                encoding="utf-8",
                **own_group(),
            )
        except OSError as error:
            raise process.unstartable(error, self._request) from None
        reading = (started.stdout, self._lines)
        threading.Thread(target=read_lines, args=reading, daemon=True).start()
        return started

    def _until_ready(self) -> Json:
        while True:
            message = self.next()
            if "error" in message:
                raise decoded(message["error"])
            if "ready" in message:
                return message["ready"]

    @property
    def pid(self) -> int | None:
        """The process's id; None once it is closed."""
        return self._process.pid if self._process else None

    def is_alive(self) -> bool:
        """Whether it still runs, as far as is known."""
        return self._process is not None and self._process.poll() is None

    def send(self, message: Mapping[str, Json]) -> None:
        """Send ``message`` as one line.

        Raises:
            PhipipeError: it is dead; says why.
        """
        running = self._running()
        assert running.stdin is not None  # a pipe
        try:
            with self._sending:
                running.stdin.write(f"{json.dumps(message)}\n")
                running.stdin.flush()
        except (OSError, ValueError):  # ValueError: it was closed meanwhile
            raise self._died("") from None

    def next(self) -> dict[str, Json]:
        """The next message; the process's memory is watched while it is waited for.

        Raises:
            PhipipeError: there will be none; says why.
        """
        while True:
            try:
                line = self._lines.get(timeout=process.SAMPLE_S)
            except queue.Empty:
                if verdict := self._limit.verdict(self._running().pid):
                    raise self._died(verdict) from None
                continue
            if not line:
                raise self._died("")
            message: dict[str, Json] = json.loads(line)
            return message

    def close(self) -> None:
        """End the process and all that it started. Twice is fine."""
        running, self._process = self._process, None
        if running is not None:
            reap(running, (), STOP_S)
        self._folder.cleanup()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise PhipipeError("the process has been ended")
        return self._process

    def _died(self, verdict: str) -> PhipipeError:
        """Why there will be no more messages."""
        running = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0 if verdict else STOP_S)
        reap(running, (), STOP_S)
        return process.died(self._home, running.returncode or 0, verdict, self._request)

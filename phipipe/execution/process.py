"""Parent side of a step server: start it, hand it steps, and end it with all that it started."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

from phipipe.errors import Interrupted
from phipipe.execution import exchange
from phipipe.execution.endings import Ending, cannot_start, keep_log
from phipipe.execution.exchange import Outcome, Request
from phipipe.execution.watch import Watch
from phipipe.processes.children import (
    await_exit,
    has_exited,
    kill_tree,
    own_group,
    python_command,
    read_lines,
    reap,
    terminate,
)
from phipipe.progress import OnProgress
from phipipe.settings import Settings, child_environment

SAMPLE_S = 0.1
GRACE_S = 2.0  # between a polite end and a forced one


class Server:
    """A child in the Python of toolchain ``name`` that serves steps (``step_server``). A context
    manager; started on the first ``run``.

    ``env`` holds further variables for it. One thread uses it at a time.
    """

    def __init__(
        self,
        python: Path,
        *,
        name: str,
        log_folder: Path,
        settings: Settings,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._python, self._name, self._logs, self._settings = python, name, log_folder, settings
        self._env = dict(env or {})
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ready = False
        self._stopping = threading.Event()
        self._home: Path | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    def run(
        self, request: Request, folder: Path, on_progress: OnProgress = lambda *report: None
    ) -> Outcome:
        """Run one step; its files are in ``folder/out`` afterwards.

        ``folder`` exists, and belongs to this request alone. After a failure the log is kept in the
        log folder.

        Raises:
            PhipipeError: the one that the step raised.
            Interrupted: ``stop`` was called.
            StepFailed: the step raised something else; names the log.
            StepKilled: the server was ended: a signal, no memory, a timeout.
            ToolchainError: the toolchain's Python cannot be started, or a package of it cannot be
                imported.
        """
        start, folder = time.monotonic(), folder.absolute()
        exchange.write(request, folder, self._settings)
        watch = Watch(folder, self._settings, on_progress, request.expected)
        code = self._do(folder, watch)
        response = exchange.read(folder)
        if response is None:
            self.kill(grace_s=0)
            ending = self._ending(request, watch, folder)
            raise ending.died(code, ready=self._ready, verdict=watch.verdict)
        watch.count(int(response["peak_rss_bytes"]), int(response["peak_anon_bytes"]))
        if not response["ok"]:
            raise self._ending(request, watch, folder).failed(response)
        return Outcome(
            seconds=time.monotonic() - start,
            peak_rss_bytes=watch.peak_rss_bytes,
            peak_anon_bytes=watch.peak_anon_bytes,
            log=folder / "log.txt",
            spent=response["spent"],
        )

    def _do(self, folder: Path, watch: Watch) -> int | None:
        try:
            self._send(folder)
            return self._wait(watch)
        except BaseException:  # Ctrl-C included: nothing of ours stays behind
            self.kill(seen=watch.members)
            raise
        finally:
            watch.end()

    def _ending(self, request: Request, watch: Watch, folder: Path) -> Ending:
        return Ending(
            step=request.step,
            toolchain=self._name,
            settings=self._settings,
            peak_rss_bytes=watch.peak_rss_bytes,
            log=keep_log(folder, self._logs, request.step),
        )

    def stop(self, force: bool = False) -> None:
        """From another thread: make the running step end with ``Interrupted`` soon; with ``force``
        kill it at once."""
        self._stopping.set()
        process = self._process
        if force and process is not None and process.returncode is None:
            kill_tree(process.pid)

    def close(self) -> None:
        """Let the server go; it has nothing left to do."""
        self.kill(grace_s=0)

    def kill(self, *, grace_s: float = GRACE_S, seen: list[psutil.Process] | None = None) -> None:
        """End the server and all that it started: politely first, and after ``grace_s`` by force.

        Interrupted while it is polite (a second Ctrl-C), it turns to force at once.
        """
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        try:
            if process is not None and grace_s > 0:
                terminate(process)
                await_exit(process, grace_s)
        finally:
            if process is not None:
                reap(process, seen or [], GRACE_S)
            if guard is not None:
                guard.kill()
                guard.communicate()
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)

    def _send(self, folder: Path) -> None:
        if self._process is not None and has_exited(self._process):
            self.kill(grace_s=0)
        if self._process is None:
            self._start(folder / "log.txt")
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: _wait will see that
            self._process.stdin.write(json.dumps(str(folder)) + "\n")
            self._process.stdin.flush()

    def _start(self, log: Path) -> None:
        # What steps leave among the temporary files goes with the server, however that ends.
        self._home = Path(tempfile.mkdtemp(prefix="phipipe-"))
        environment = child_environment(offline=True, keep_path=self._settings.use_current)
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._home)) | self._env
        command = python_command(
            self._python.absolute(), "from phipipe.processes.step_server import main; main()"
        )
        try:
            with log.open("ab") as stderr:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=self._home,
                    env=environment,
                    encoding="utf-8",
                    **own_group(),
                )
        except OSError as error:
            shutil.rmtree(self._home, ignore_errors=True)
            raise cannot_start(self._name, str(error.strerror), self._settings) from None
        self._guard = _start_guard(self._process.pid, self._home)
        self._ready, self._lines = False, queue.SimpleQueue()
        threading.Thread(
            target=read_lines, args=(self._process.stdout, self._lines), daemon=True
        ).start()

    def _wait(self, watch: Watch) -> int | None:
        """Until the step is done (None) or the server is gone (its exit code)."""
        process = self._process
        assert process is not None
        while True:
            try:
                line = self._lines.get(timeout=SAMPLE_S)
            except queue.Empty:
                if self._stopping.is_set():
                    raise Interrupted("stopped") from None
                if has_exited(process):  # yet a process that it forked holds the pipe
                    break
                watch.sample(process.pid)
                if watch.verdict:
                    self.kill(seen=watch.members)
                    return None
                continue
            if line == "done":
                watch.report()
                return None
            if not line:
                break
            self._ready = True
        await_exit(process, GRACE_S)
        kill_tree(process.pid, watch.members)
        return process.wait()


def _start_guard(pid: int, home: Path) -> subprocess.Popen[bytes]:
    """What ends the server ``pid``, and removes its ``home``, when we are dead."""
    return subprocess.Popen(
        python_command(
            Path(sys.executable),
            "from phipipe.processes.step_server import guard; guard()",
            str(pid),
            str(home),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=child_environment(offline=True, keep_path=True),
        **own_group(),
    )

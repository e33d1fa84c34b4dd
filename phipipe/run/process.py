"""Parent side of a worker: start it, watch its memory and time, and say plainly how a step
ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil

from phipipe import hardware, words
from phipipe.errors import (
    Interrupted,
    PhipipeError,
    StepFailed,
    StepKilled,
    ToolchainError,
    decoded,
)
from phipipe.processes import step_server
from phipipe.processes.children import own_group
from phipipe.processes.children import python_command as python_command
from phipipe.settings import Settings
from phipipe.settings import child_environment as child_environment  # belongs to python_command
from phipipe.store import free_space

SAMPLE_S = 0.1
MEMBERS_EVERY = 5  # samples; listing a tree means reading the process table
GRACE_S = 2.0  # between a polite end and a forced one
KEPT_LOGS = 50
NO_MEMORY = re.compile(
    r"not enough memory|bad[_ ]?alloc|failed to allocate|cannot allocate memory|out of memory",
    re.IGNORECASE,
)
MORE_MEMORY = "close other programs, or build on a machine with more memory"

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One step to be run: ``runs`` is the name of its function (``phipipe.steps``)."""

    step: str
    runs: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step took. Peaks are of the worker and its children; seconds include starting the
    worker.

    ``peak_rss_bytes`` comes from the kernel and is exact for the worker itself; ``peak_anon_bytes``
    (memory that no file backs) is sampled, so a spike shorter than ``SAMPLE_S`` can be missed.
    Where the system does not tell the two apart, they are the same. ``log`` lies in the request's
    folder.
    """

    seconds: float
    peak_rss_bytes: int
    peak_anon_bytes: int
    log: Path

    def usage(self) -> dict[str, float]:
        """For the step's record."""
        return {
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_anon_bytes": self.peak_anon_bytes,
        }


class Worker:
    """A child in the Python of toolchain ``name``. A context manager; started on the first ``run``.

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

    def __enter__(self) -> Worker:
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
            StepKilled: the worker was ended: a signal, no memory, a timeout.
            ToolchainError: the toolchain's Python cannot be started, or a package of it cannot be
                imported.
        """
        start, folder = time.monotonic(), folder.absolute()
        content = {
            "runs": request.runs,
            "inputs": {name: str(path.absolute()) for name, path in request.inputs.items()},
            "params": dict(request.params),
            "path": [str(root) for root in self._settings.worker_path],
        }
        (folder / "request.json").write_text(json.dumps(content), "utf-8")
        (folder / "response.json").unlink(missing_ok=True)
        watch = _Watch(folder, self._settings, on_progress)
        try:
            self._send(folder)
            code = self._wait(watch)
        except BaseException:  # Ctrl-C included: nothing of ours stays behind
            self.kill(seen=watch.members)
            raise
        response = _response(folder)
        if response is None:
            self.kill(grace_s=0)
            raise self._died(request.step, code, watch, self._keep(folder, request.step))
        watch.count(int(response["peak_rss_bytes"]), int(response["peak_anon_bytes"]))
        if not response["ok"]:
            raise self._failed(request.step, response, watch, self._keep(folder, request.step))
        return Outcome(
            seconds=time.monotonic() - start,
            peak_rss_bytes=watch.peak_rss_bytes,
            peak_anon_bytes=watch.peak_anon_bytes,
            log=folder / "log.txt",
        )

    def stop(self, force: bool = False) -> None:
        """From another thread: make the running step end with ``Interrupted`` soon; with ``force``
        kill it at once."""
        self._stopping.set()
        process = self._process
        if force and process is not None and process.returncode is None:
            step_server.kill_tree(process.pid, ())

    def close(self) -> None:
        """Let the worker go; it has nothing left to do."""
        self.kill(grace_s=0)

    def kill(self, *, grace_s: float = GRACE_S, seen: list[psutil.Process] | None = None) -> None:
        """End the worker and all that it started: politely first, and after ``grace_s`` by force.

        Interrupted while it is polite (a second Ctrl-C), it turns to force at once.
        """
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        try:
            if process is not None and grace_s > 0:
                _terminate(process)
                _await_exit(process, grace_s)
        finally:
            if process is not None:
                if process.returncode is None:  # once it is reaped, its id may be another's
                    step_server.kill_tree(process.pid, seen or ())
                with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                    assert process.stdin is not None
                    process.stdin.close()
                    process.wait(GRACE_S)
            if guard is not None:
                guard.kill()
                guard.communicate()
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)

    def _send(self, folder: Path) -> None:
        if self._process is not None and _has_exited(self._process):
            self.kill(grace_s=0)
        if self._process is None:
            self._start(folder / "log.txt")
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: _wait will see that
            self._process.stdin.write(json.dumps(str(folder)) + "\n")
            self._process.stdin.flush()

    def _start(self, log: Path) -> None:
        # What steps leave among the temporary files goes with the worker, however that ends.
        self._home = Path(tempfile.mkdtemp(prefix="phipipe-"))
        environment = child_environment(offline=True, keep_path=self._settings.use_current)
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._home)) | self._env
        pipe = subprocess.PIPE
        try:
            with log.open("ab") as stderr:
                self._process = subprocess.Popen(
                    python_command(self._python.absolute(), "from phipipe.processes.step_server import main; main()"),
                    stdin=pipe, stdout=pipe, stderr=stderr, cwd=self._home, env=environment, encoding="utf-8",
                    **own_group(),
                )  # fmt: skip
        except OSError as error:
            shutil.rmtree(self._home, ignore_errors=True)
            raise ToolchainError(
                f"toolchain `{self._name}` cannot be started: {error.strerror}", hint=self._repair()
            ) from None
        self._guard = subprocess.Popen(
            python_command(
                Path(sys.executable), "from phipipe.processes.step_server import guard; guard()",
                str(self._process.pid), str(self._home),
            ),
            stdin=pipe, stdout=subprocess.DEVNULL, env=child_environment(offline=True, keep_path=True), **own_group(),
        )  # fmt: skip
        self._ready, self._lines = False, queue.SimpleQueue()
        threading.Thread(
            target=_read, args=(self._process.stdout, self._lines), daemon=True
        ).start()

    def _wait(self, watch: _Watch) -> int | None:
        """Until the step is done (None) or the worker is gone (its exit code)."""
        process = self._process
        assert process is not None
        while True:
            try:
                line = self._lines.get(timeout=SAMPLE_S)
            except queue.Empty:
                if self._stopping.is_set():
                    raise Interrupted("stopped") from None
                if _has_exited(process):  # yet a process that it forked holds the pipe
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
        _await_exit(process, GRACE_S)
        step_server.kill_tree(process.pid, watch.members)
        return process.wait()

    def _keep(self, folder: Path, step: str) -> Path:
        """Move the log to where it outlives the request's folder; the oldest of many go."""
        plain = re.sub(r"[^\w.-]+", "-", step)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain}-{uuid.uuid4().hex[:6]}.log"
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            kept = Path(shutil.move(folder / "log.txt", self._logs / name))
            for old in sorted(self._logs.glob("*.log"))[:-KEPT_LOGS]:
                old.unlink(missing_ok=True)
        except OSError:  # a full disk must not hide the failure itself
            return folder / "log.txt"
        return kept

    def _repair(self) -> str:
        if self._settings.use_current:
            return f"pip install 'phipipe[{self._name}]', or unset PHIPIPE_TOOLCHAIN"
        return f"phipipe toolchain install {self._name} --force"

    def _absent(self, reason: str) -> str:
        if self._settings.use_current:
            return (
                f"this Python has not what toolchain `{self._name}` needs (PHIPIPE_TOOLCHAIN "
                f"is `current`): {reason}"
            )
        return f"toolchain `{self._name}` is damaged: {reason}"

    def _died(self, step: str, code: int | None, watch: _Watch, log: Path) -> PhipipeError:
        """Why there is no response."""
        peak = words.gib(watch.peak_rss_bytes)
        if watch.verdict:
            return StepKilled(
                f"step `{step}` was ended: {watch.verdict} (peak {peak} resident)",
                hint=f"its log: {log}",
            )
        if not self._ready and code is not None and code > 0:
            last = "".join(_tail(log)[-1:]).strip()
            return ToolchainError(
                f"toolchain `{self._name}` cannot be started: {last}", hint=self._repair()
            )
        if code in (-9, 137):
            return StepKilled(
                f"step `{step}` was killed by SIGKILL at {peak} resident: most likely the "
                f"system ran out of memory",
                hint=f"{MORE_MEMORY}; its log: {log}",
            )
        folders = free_space.of_steps(self._settings)
        if free_space.is_full(
            folders
        ):  # a file mapped into memory: SIGBUS; or no room for an answer
            return free_space.error(
                folders, doing=f"step `{step}`", reason=f"it died ({_ending(code)})"
            )
        return StepKilled(
            f"step `{step}` died ({_ending(code)}, peak {peak} resident)", hint=f"its log: {log}"
        )

    def _failed(self, step: str, told: Mapping[str, Any], watch: _Watch, log: Path) -> PhipipeError:
        """The step's own failure, raised again here as what it is."""
        message = str(told["message"])
        if "error" in told:
            return decoded(told["error"], before=f"step `{step}`: ")
        folders = free_space.of_steps(self._settings)
        # First: what a full disk makes libraries say is easily taken for a lack of memory.
        if (
            told.get("errno") in free_space.FULL
            or free_space.SAID.search(message)
            or (NO_MEMORY.search(message) and free_space.is_full(folders))
        ):
            reason = _last(message) or str(told["kind"])
            return free_space.error(folders, doing=f"step `{step}`", reason=reason)
        if (
            told["kind"] == "MemoryError"
            or NO_MEMORY.search(message)
            or told.get("returncode") in (-9, 137)
        ):
            peak = words.gib(watch.peak_rss_bytes)
            return StepKilled(
                f"step `{step}` ran out of memory at {peak} resident: "
                f"{_last(message) or told['kind']}",
                hint=f"{MORE_MEMORY}; its log: {log}",
            )
        if "import" in told and str(told["import"]).partition(".")[0] != "phipipe":
            return ToolchainError(self._absent(_last(message)), hint=self._repair())
        before = "".join(f"\n  | {line}" for line in _tail(log, before=str(told["traceback"]))[-3:])
        return StepFailed(
            f"step `{step}` failed: {told['kind']}: {_last(message)}{before}",
            hint=f"its log: {log}",
        )


class _Watch:
    """Memory and time of one step, sampled; ``verdict`` says why it has to end."""

    def __init__(self, folder: Path, settings: Settings, on_progress: OnProgress) -> None:
        self._folder, self._settings, self._on_progress = folder, settings, on_progress
        self._start = self._active = time.monotonic()
        self._seen: tuple[int, list[Any]] = (0, [])
        self._cpu_s = 0.0
        self._progress: list[Any] = []
        self._samples = 0
        self.members: list[psutil.Process] = []
        self.peak_rss_bytes = self.peak_anon_bytes = 0
        self.verdict = ""

    def sample(self, pid: int) -> None:
        """Look at the tree once. What processes share counts in each of them."""
        if self._samples % MEMBERS_EVERY == 0:
            self.members = step_server.tree(pid)
        self._samples += 1
        rss, anon, cpu_s = 0, 0, 0.0
        for member in self.members:
            with contextlib.suppress(psutil.Error, OSError):
                resident, anonymous = memory_of(member)
                times = member.cpu_times()
                rss, anon, cpu_s = (
                    rss + resident,
                    anon + anonymous,
                    cpu_s + times.user + times.system,
                )
        self.count(rss, anon)
        self.report()
        self._judge(anon, cpu_s)

    def count(self, rss: int, anon: int) -> None:
        self.peak_rss_bytes, self.peak_anon_bytes = (
            max(self.peak_rss_bytes, rss),
            max(self.peak_anon_bytes, anon),
        )

    def report(self) -> None:
        """Hand on the step's progress, if there is news."""
        with contextlib.suppress(OSError, ValueError):
            progress = json.loads((self._folder / "progress.json").read_text("utf-8"))
            if progress != self._progress:
                self._progress = progress
                self._on_progress(*progress)

    def _judge(self, anon: int, cpu_s: float) -> None:
        now, limits = time.monotonic(), self._settings
        seen = (_size(self._folder / "log.txt"), self._progress)
        worked = abs(cpu_s - self._cpu_s) > 0.05 * max(
            now - self._active, 1.0
        )  # less is a poll, or a heartbeat
        if seen != self._seen or worked:
            self._seen, self._cpu_s, self._active = seen, cpu_s, now
        if limits.memory_limit_gib is not None and anon > limits.memory_limit_gib * 2**30:
            self.verdict = f"it took more than PHIPIPE_MEMORY_LIMIT_GIB={limits.memory_limit_gib:g}"
        elif limits.step_timeout_s is not None and now - self._start > limits.step_timeout_s:
            self.verdict = f"it ran longer than PHIPIPE_STEP_TIMEOUT_S={limits.step_timeout_s:g}"
        elif limits.idle_timeout_s is not None and now - self._active > limits.idle_timeout_s:
            self.verdict = f"it did nothing for PHIPIPE_IDLE_TIMEOUT_S={limits.idle_timeout_s:g}"


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """(resident, anonymous and shared) bytes; the two are one where the system does not tell them
    apart."""
    if sys.platform == "linux":
        fields = hardware.memory_of(process.pid)
        return fields["VmRSS"], fields["RssAnon"] + fields["RssShmem"]
    rss = int(process.memory_info().rss)
    return rss, rss


def _read(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError), stream:
        for line in stream:
            lines.put(line.strip())
    lines.put("")


def _has_exited(process: subprocess.Popen[str]) -> bool:
    """Whether it has ended; it is left unreaped where that can be, so that nobody else gets its id
    yet."""
    if process.returncode is None and sys.platform != "win32" and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _await_exit(process: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not _has_exited(process) and time.monotonic() < end:
        time.sleep(0.01)


def _terminate(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _response(folder: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads((folder / "response.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}" if code is None or code < 256 else f"exit code {code:#x}"


def _last(message: str) -> str:
    return "".join(message.strip().splitlines()[-1:])


def _tail(log: Path, before: str = "") -> list[str]:
    """The last lines that a log says, up to where ``before`` begins."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, _size(log) - len(before) - 16384))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    said = text.rpartition(before)[0] if before and before in text else text
    return [line.rstrip() for line in said.splitlines() if line.strip()]

"""Parent side of a worker: start it, watch its memory and time, and say plainly how a step ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from phipipe import errors
from phipipe.errors import PhipipeError, StepFailed, StepKilled, StoreError, ToolchainError
from phipipe.settings import Settings
from phipipe.store import FULL

SAMPLE_S = 0.2
GRACE_S = 2.0  # between a polite end and a forced one
OFFLINE = dict.fromkeys(
    (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "DO_NOT_TRACK",
    ),
    "1",
)
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|^AWS_|^AZURE_|_PAT$", re.IGNORECASE)
# Makes phipipe importable in a toolchain's Python, and nothing of what is installed beside it.
BOOTSTRAP = """
import importlib.util, os, sys
folder = sys.argv.pop()
spec = importlib.util.spec_from_file_location(
    "phipipe", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
sys.modules["phipipe"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
# A process of its own that outlives us by a moment: when our end of its stdin closes without a word, we are
# dead, and it ends the worker's whole group, even while native code there holds the interpreter's lock.
GUARD = "import os, sys\nif not sys.stdin.read(1): os.killpg(int(sys.argv[1]), 9)"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One step to be run: ``runs`` is ``module:function``."""

    step: str
    runs: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Any]


@dataclass(kw_only=True)
class Outcome:
    """What a step took. Peaks are of the worker and its children; seconds include starting the worker."""

    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_anon_bytes: int = 0

    def usage(self) -> dict[str, float]:
        """For the step's record."""
        return {
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_anon_bytes": self.peak_anon_bytes,
        }


def python_command(python: Path, call: str, *arguments: str) -> list[str]:
    """The command that runs ``call`` in ``python`` with phipipe, alone, importable."""
    return [str(python), "-P", "-c", BOOTSTRAP + call, *arguments, str(Path(__file__).parent)]


def child_environment(*, offline: bool, keep_path: bool = False) -> dict[str, str]:
    """Our environment without secrets and, ``offline``, with every hub client told to stay off the network."""
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    if not keep_path:  # the toolchain decides what can be imported
        kept = {name: value for name, value in kept.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"PYTHONUNBUFFERED": "1"} | (OFFLINE if offline else {})


class Worker:
    """A child in the Python of toolchain ``name``. A context manager; started on the first ``run``."""

    def __init__(self, python: Path, *, name: str, log_folder: Path, settings: Settings) -> None:
        self._python, self._name, self._logs, self._settings = python, name, log_folder, settings
        self._process: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    def run(
        self, request: Request, folder: Path, on_progress: Callable[[int, int, str], None] = lambda *report: None
    ) -> Outcome:
        """Run one step; its files are in ``folder/out`` afterwards.

        Raises:
            PhipipeError: the one that the step raised.
            StepFailed: the step raised something else; names the log.
            StepKilled: the worker was ended: a signal, no memory, a timeout.
            ToolchainError: a package of the toolchain cannot be imported.
        """
        start = time.monotonic()
        log = self._logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{request.step}-{uuid.uuid4().hex[:6]}.log"
        self._logs.mkdir(parents=True, exist_ok=True)
        inputs = {name: str(path) for name, path in request.inputs.items()}
        content = {"runs": request.runs, "inputs": inputs, "params": dict(request.params), "log": str(log)}
        (folder / "request.json").write_text(json.dumps(content), "utf-8")
        watch = _Watch(request.step, folder, log, self._settings, on_progress)
        try:
            self._send(str(folder))
            ended = self._wait(watch)
        except BaseException:  # Ctrl-C included: nothing of ours stays behind
            self.kill()
            raise
        outcome = Outcome(peak_rss_bytes=watch.peak_rss_bytes, peak_anon_bytes=watch.peak_anon_bytes)
        response = _response(folder)
        if response is None:
            self.kill()
            raise _killed(request.step, ended, watch, log)
        outcome.peak_rss_bytes = max(outcome.peak_rss_bytes, int(response["peak_rss_bytes"]))
        if not response["ok"]:
            raise _failure(request.step, self._name, response, outcome, log)
        log.unlink(missing_ok=True)
        outcome.seconds = time.monotonic() - start
        return outcome

    def _send(self, line: str) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died: _wait will see that
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _start(self) -> None:
        self.kill()
        own_group: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            self._process = subprocess.Popen(
                python_command(self._python, "from phipipe.worker import main; main()"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self._logs / "workers.log").open("a", encoding="utf-8"),
                text=True,
                encoding="utf-8",
                env=child_environment(offline=True, keep_path=self._settings.use_current),
                **own_group,
            )
        except OSError as error:
            raise ToolchainError(
                f"toolchain `{self._name}` cannot be started: {error.strerror}",
                hint=f"phipipe toolchain install {self._name} --force",
            ) from None
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        if hasattr(os, "killpg"):
            command = [sys.executable, "-I", "-S", "-c", GUARD, str(self._process.pid)]
            self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _wait(self, watch: _Watch) -> int | None:
        """Until the step is done (None) or the worker is gone (its exit code)."""
        assert self._process is not None
        while True:
            try:
                line = self._lines.get(timeout=SAMPLE_S)
            except queue.Empty:
                watch.sample(self._process.pid)
                if watch.verdict:
                    self.kill()
                    return None
                continue
            if line:
                return None
            self._process.wait()
            return self._process.returncode

    def close(self) -> None:
        """Let the worker go; it has nothing left to do."""
        self.kill(polite=False)

    def kill(self, polite: bool = True) -> None:
        """End the worker and all that it started: within ``GRACE_S`` politely, then by force."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if process is not None:
            tree = _tree(process.pid)
            if polite and process.poll() is None:
                _signal(process, tree, "terminate")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
            _signal(process, tree, "kill")
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
        if guard is not None:
            with contextlib.suppress(OSError):
                guard.communicate(b"x")


def _read(stream: Any, lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed under us
        for line in stream:
            lines.put(line)
    lines.put("")


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _signal(process: subprocess.Popen[str], tree: list[psutil.Process], how: str) -> None:
    """Reach the whole group, and those that left it."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    for member in tree:
        with contextlib.suppress(psutil.Error):
            member.terminate() if how == "terminate" else member.kill()


class _Watch:
    """Memory and time of one step, sampled; ``verdict`` says why it has to end."""

    def __init__(
        self, step: str, folder: Path, log: Path, settings: Settings, on_progress: Callable[[int, int, str], None]
    ) -> None:
        self._folder, self._log, self._settings, self._on_progress = folder, log, settings, on_progress
        self._start = self._active = time.monotonic()
        self._seen: tuple[object, ...] = ()
        self._progress: list[Any] = []
        self.peak_rss_bytes = self.peak_anon_bytes = 0
        self.verdict = ""

    def sample(self, pid: int) -> None:
        tree = _tree(pid)
        anon, rss, cpu = 0, 0, 0.0
        for member in tree:
            with contextlib.suppress(psutil.Error, OSError):
                a, r = _memory(member)
                times = member.cpu_times()
                anon, rss, cpu = anon + a, rss + r, cpu + times.user + times.system
        self.peak_anon_bytes, self.peak_rss_bytes = max(self.peak_anon_bytes, anon), max(self.peak_rss_bytes, rss)
        self._report()
        self._judge(rss, (round(cpu, 1), _size(self._log), *self._progress))

    def _report(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            progress = json.loads((self._folder / "progress.json").read_text("utf-8"))
            if progress != self._progress:
                self._progress = progress
                self._on_progress(*progress)

    def _judge(self, rss: int, seen: tuple[object, ...]) -> None:
        now, limits = time.monotonic(), self._settings
        if seen != self._seen:
            self._seen, self._active = seen, now
        if limits.memory_limit_gib is not None and rss > limits.memory_limit_gib * 2**30:
            self.verdict = f"it took more than PHIPIPE_MEMORY_LIMIT_GIB={limits.memory_limit_gib:g}"
        elif limits.step_timeout_s is not None and now - self._start > limits.step_timeout_s:
            self.verdict = f"it ran longer than PHIPIPE_STEP_TIMEOUT_S={limits.step_timeout_s:g}"
        elif limits.idle_timeout_s is not None and now - self._active > limits.idle_timeout_s:
            self.verdict = f"it did nothing for PHIPIPE_IDLE_TIMEOUT_S={limits.idle_timeout_s:g}"


def _memory(process: psutil.Process) -> tuple[int, int]:
    """(anonymous, resident) bytes; the two are one where the system does not tell them apart."""
    status = Path(f"/proc/{process.pid}/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text("ascii", errors="replace").splitlines())
        return tuple(int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]
    rss = int(process.memory_info().rss)
    return rss, rss


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


def _killed(step: str, code: int | None, watch: _Watch, log: Path) -> StepKilled:
    peak = f"{watch.peak_rss_bytes / 2**30:.2f} GiB"
    if watch.verdict:
        return StepKilled(f"step `{step}` was ended: {watch.verdict} (peak memory {peak})", hint=f"its log: {log}")
    name = f"exit code {code}"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
    if code in (-9, 137):
        return StepKilled(
            f"step `{step}` was killed by SIGKILL at {peak}: most likely the system ran out of memory",
            hint=f"close other programs, or build on a machine with more memory; log: {log}",
        )
    return StepKilled(f"step `{step}` died ({name}, peak memory {peak})", hint=f"its log: {log}")


def _failure(step: str, toolchain: str, told: Mapping[str, Any], outcome: Outcome, log: Path) -> PhipipeError:
    """The step's own failure, raised again here as what it is."""
    message, peak = str(told["message"]), f"{outcome.peak_rss_bytes / 2**30:.2f} GiB"
    if told.get("phipipe"):
        kind: type[PhipipeError] = getattr(errors, str(told["kind"]))
        error = PhipipeError.__new__(kind)
        PhipipeError.__init__(error, f"step `{step}`: {message}", hint=told.get("hint"))
        return error
    if told["kind"] == "MemoryError" or "DefaultCPUAllocator: not enough memory" in message:
        return StepKilled(
            f"step `{step}` ran out of memory at {peak}",
            hint=f"close other programs, or build on a machine with more memory; log: {log}",
        )
    if told["kind"] in ("ImportError", "ModuleNotFoundError") and not str(told.get("module")).startswith("phipipe"):
        return ToolchainError(
            f"toolchain `{toolchain}` is damaged: {message}", hint=f"phipipe toolchain install {toolchain} --force"
        )
    if told.get("errno") in FULL:
        return StoreError(
            f"step `{step}` found no room left on the disk",
            hint="phipipe cache gc --budget GIB, or set PHIPIPE_CACHE to a larger disk",
        )
    last = message.strip().splitlines()
    return StepFailed(f"step `{step}` failed: {told['kind']}: {last[-1] if last else ''}", hint=f"its log: {log}")

"""Child side: serves the steps of one run, one after another, in a toolchain's Python.

started as  ``PYTHON -P -c <bootstrap>`` (``children.python_command``); only phipipe's own folder is
added reads       one line per request on stdin: a folder (as a JSON string) with ``request.json``
            {"runs": "room/verb", "inputs": {name: path}, "params": {...}, "path": [import roots],
            "memory_bytes": what the plan estimates, "layers": name of an input, "seat": {...} as
            company.Seat, or both null}
writes      FOLDER/out/            the step's files
            FOLDER/log.txt         all that the step prints, native code included
            FOLDER/progress.json   now and then
            FOLDER/response.json   last; if it is missing, the server died
says        on stdout: "ready", then "done" for each finished request
ends        when stdin does: the parent is done, or dead. Whatever still runs then is killed.

Standard library and phipipe's lightest modules only: this runs among packages that are not ours;
psutil is used where it is there. Steps can fork (``multiprocessing`` too), but a child that
*spawns* anew cannot import phipipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from phipipe import hardware, progress, steps
from phipipe.errors import PhipipeError, encoded
from phipipe.processes import bars, company, gpu, spending
from phipipe.processes.children import kill_tree, tree
from phipipe.processes.prohibitions import prohibit
from phipipe.steps import Json

PROGRESS_EVERY_S = 0.2
MEASURE = "evaluate/measure"
GUARD_S = 2.0  # a guard that lives has long been done by then


def main() -> None:
    """Serve requests until stdin ends."""
    control = os.fdopen(os.dup(1), "w", encoding="ascii")
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        # a step that asks for input gets none, instead of our requests
        os.dup2(nothing.fileno(), 0)
    _print_to(Path(os.devnull))
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, requests), daemon=True).start()
    faulthandler.enable()  # a crash in native code leaves a Python traceback in the log
    prohibit()
    home, spent = Path.cwd(), spending.NOTHING  # the first step pays for the start
    print("ready", file=control, flush=True)
    while True:
        spent = _serve(Path(json.loads(requests.get())), spent)
        print("done", file=control, flush=True)
        os.chdir(home)
        _free_memory()  # while the parent looks at the answer


def guard() -> None:
    """In a process of its own: when stdin ends, the parent is dead. Kills the tree of ARGV[1],
    removes folder ARGV[2].

    The server's own thread does the same, but never gets its turn while native code holds the
    interpreter's lock. PR_SET_PDEATHSIG would be no help: it fires when the parent's *thread* ends,
    and reaches no grandchild.
    """
    sys.stdin.buffer.read()
    kill_tree(int(sys.argv[1]))
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def _listen(lines: TextIO, requests: queue.SimpleQueue[str]) -> None:
    for line in lines:
        requests.put(line)
    # no psutil here: the guard has it, and must find our children before they lose us
    if not tree(os.getpid()):
        time.sleep(GUARD_S)
    kill_tree(os.getpid())
    os._exit(1)


def _serve(folder: Path, before: spending.Spent) -> spending.Spent:
    """Do the request in ``folder``; ``before`` and the value are what this process had spent when
    the last one and this one ended."""
    _print_to(folder / "log.txt")
    _reset_peak()
    request = json.loads((folder / "request.json").read_text("utf-8"))
    _listen_to_progress(folder / "progress.json", request["runs"])
    gpu.foretell(request["memory_bytes"])
    start = time.perf_counter()
    try:
        _call(request, folder / "out")
        response: dict[str, Json] = {"ok": True}
    except BaseException as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        response = {"ok": False, **_described(error)}
        _flush()
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # they may hold a model
    shared = company.rise()
    spent = spending.of_process()
    took = spent.since(before).usage() | progress.take_tokens() | gpu.usage() | shared
    response |= {"seconds": time.perf_counter() - start, "spent": took, **_memory()}
    _flush()
    _print_to(Path(os.devnull))  # Windows cannot move or remove a log that is open
    aside = folder / "response.tmp"
    aside.write_text(json.dumps(response), "utf-8")
    aside.replace(folder / "response.json")
    return spent


def _listen_to_progress(path: Path, runs: str) -> None:
    """Hear the step itself, and as long as it says nothing, the tools that it uses. A measurement
    imports nothing for that: its memory is measured."""
    own = _Progress(path)
    progress.listen(own.of_step)
    if runs != MEASURE:
        bars.hear(own.of_tool)


def _call(request: dict[str, Json], out: Path) -> None:
    sys.path += [root for root in request["path"] if root not in sys.path]
    out.mkdir(exist_ok=True)  # of a step that resumes
    layers = request.get("layers")
    company.sit(request["inputs"][layers] if layers else None, request.get("seat"))
    step = steps.resolve(request["runs"])
    step({name: Path(path) for name, path in request["inputs"].items()}, out, request["params"])


def _described(error: BaseException) -> dict[str, Json]:
    """What the parent needs to raise the same failure."""
    failure: dict[str, Json] = {"kind": type(error).__name__, "message": str(error)}
    failure["traceback"] = "".join(traceback.format_exception(error))
    if isinstance(error, PhipipeError):
        failure["error"] = encoded(error)
    if isinstance(error, OSError):
        failure["errno"] = error.errno
    if isinstance(error, subprocess.CalledProcessError):
        failure["returncode"] = error.returncode
    for cause in _causes(error):
        if isinstance(cause, ImportError) and not isinstance(error, PhipipeError):
            failure |= {"import": cause.name or "", "message": str(cause)}
    return failure


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was explicitly raised from."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def _print_to(path: Path) -> None:
    """Send file descriptors 1 and 2 to ``path``: native code prints there too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):
        (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).fflush(None)


def _free_memory() -> None:
    """Give back what the last step no longer needs, so that it is not counted against the next
    one."""
    gc.collect()
    gpu.release()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


class _Progress:
    """Writes reports to a file: atomically, not too often, and never without the last one."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, 0.0
        self._speaks = False  # the step itself

    def of_step(self, done: int, total: int, unit: str) -> None:
        """The step says how far it is."""
        self._speaks = True
        self._write(done, total, unit)

    def of_tool(self, done: int, total: int, unit: str) -> None:
        """A tool says how far it is; the step knows better."""
        if not self._speaks:
            self._write(done, total, unit)

    def _write(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_EVERY_S or done >= total:
            self._last = now
            aside = self._path.with_suffix(".tmp")
            # Windows, while the parent reads: the next report will do
            with contextlib.suppress(PermissionError):
                aside.write_text(json.dumps([done, total, unit]), "utf-8")
                aside.replace(self._path)


def _reset_peak() -> None:
    """Start the kernel's high-water mark anew for this step (Linux ≥ 4.0: proc(5), clear_refs)."""
    # not Linux, or not allowed: the peak then covers the steps before too
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _memory() -> dict[str, int]:
    """Peak resident bytes of this process, and its anonymous bytes now.

    VmHWM on Linux, never ``ru_maxrss``, which a child inherits there across exec. On Windows the
    peak working set and on macOS ``ru_maxrss`` (its own there, but nothing resets it): of all steps
    that were served.
    """
    with contextlib.suppress(OSError):
        fields = hardware.memory_of(os.getpid())
        return {
            "peak_rss_bytes": fields["VmHWM"],
            "peak_anon_bytes": fields["RssAnon"] + fields["RssShmem"],
        }
    with contextlib.suppress(ImportError):
        import psutil

        memory = psutil.Process().memory_info()
        peak = int(getattr(memory, "peak_wset", memory.rss))
        if sys.platform == "darwin":
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_rss_bytes": peak, "peak_anon_bytes": int(memory.rss)}
    return {"peak_rss_bytes": 0, "peak_anon_bytes": 0}

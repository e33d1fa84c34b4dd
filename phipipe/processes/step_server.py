"""Child side: serves the steps of one run, one after another, in a toolchain's Python.

started as  ``PYTHON -P -c <bootstrap>`` (``children.python_command``); only phipipe's own folder is
added reads       one line per request on stdin: a folder (as a JSON string) with ``request.json``
            {"runs": "room/verb", "inputs": {name: path}, "params": {...}, "path": [import roots]}
writes      FOLDER/out/            the step's files
            FOLDER/log.txt         all that the step prints, native code included
            FOLDER/progress.json   now and then
            FOLDER/response.json   last; if it is missing, the worker died
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
import importlib.machinery
import ipaddress
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
from typing import Any, TextIO

from phipipe import hardware, progress, steps
from phipipe.errors import PhipipeError, SourceError, encoded
from phipipe.processes.children import kill_tree as kill_tree
from phipipe.processes.children import tree as tree

PROGRESS_EVERY_S = 0.2
PARENT_S = 1.0
GUARD_S = 2.0  # a guard that lives has long been done by then
# Modules through which a process talks with children of its own; these pickles come from us.
OWN_PICKLES = {"multiprocessing.connection", "multiprocessing.queues"}


def main() -> None:
    """Serve requests until stdin ends."""
    control = os.fdopen(os.dup(1), "w", encoding="ascii")
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(
            nothing.fileno(), 0
        )  # a step that asks for input gets none, instead of our requests
    _print_to(Path(os.devnull))
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, requests), daemon=True).start()
    faulthandler.enable()  # a crash in native code leaves a Python traceback in the log
    sys.addaudithook(refuse)
    sys.meta_path.insert(0, NoTorchLoad())
    home = Path.cwd()
    print("ready", file=control, flush=True)
    while True:
        _serve(Path(json.loads(requests.get())))
        print("done", file=control, flush=True)
        os.chdir(home)
        _free_memory()  # while the parent looks at the answer


def guard() -> None:
    """In a process of its own: when stdin ends, the parent is dead. Kills the tree of ARGV[1],
    removes folder ARGV[2].

    The worker's own thread does the same, but never gets its turn while native code holds the
    interpreter's lock. PR_SET_PDEATHSIG would be no help: it fires when the parent's *thread* ends,
    and reaches no grandchild.
    """
    sys.stdin.buffer.read()
    kill_tree(int(sys.argv[1]))
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def _listen(lines: TextIO, requests: queue.SimpleQueue[str]) -> None:
    for line in lines:
        requests.put(line)
    if not tree(
        os.getpid()
    ):  # no psutil here: the guard has it, and must find our children before they lose us
        time.sleep(GUARD_S)
    kill_tree(os.getpid())
    os._exit(1)


def end_with_parent() -> None:
    """From now on, end this process when the one that started it is gone; nothing on Windows."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        os._exit(1)

    if sys.platform != "win32":
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: no pickle is ever loaded (promise S1), and no step but download leaves this
    machine (S8)."""
    if event == "pickle.find_class":
        if sys._getframe(1).f_globals.get("__name__") not in OWN_PICKLES:
            refuse_pickle(f"`{arguments[0]}.{arguments[1]}`")
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and isinstance(address[0], str | bytes | bytearray):
            host = address[0] if isinstance(address[0], str) else os.fsdecode(bytes(address[0]))
            if not _is_local(host):
                raise PermissionError(
                    f"refused to connect to {host}: only the download step uses the network"
                )
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = os.fsdecode(arguments[0] or "")
        if not _is_local(host):
            raise PermissionError(
                f"refused to look up {host}: only the download step uses the network"
            )


def refuse_pickle(what: str) -> None:
    """Raise: pickles can run code."""
    raise SourceError(
        f"refused to unpickle {what}: a pickle can run any code",
        hint="use a checkpoint in safetensors format",
    )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("localhost", "")


class NoTorchLoad:
    """Import hook: ``torch.load`` refuses. With ``weights_only`` it has an unpickler that no audit
    hook sees."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.serialization":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_replace(module: Any) -> None:
                execute(module)
                module.load = lambda f, *rest, **named: refuse_pickle(f"`{getattr(f, 'name', f)}`")

            spec.loader.exec_module = then_replace  # type: ignore[method-assign]
        return spec


def _serve(folder: Path) -> None:
    _print_to(folder / "log.txt")
    _reset_peak()
    progress.listen(_Progress(folder / "progress.json"))
    start = time.perf_counter()
    try:
        _call(json.loads((folder / "request.json").read_text("utf-8")), folder / "out")
        response: dict[str, Any] = {"ok": True}
    except BaseException as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        response = {"ok": False, **_told(error)}
        _flush()
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # they may hold a model
    response |= {"seconds": time.perf_counter() - start, **_memory()}
    _flush()
    _print_to(Path(os.devnull))  # Windows cannot move or remove a log that is open
    aside = folder / "response.tmp"
    aside.write_text(json.dumps(response), "utf-8")
    aside.replace(folder / "response.json")


def _call(request: dict[str, Any], out: Path) -> None:
    sys.path += [root for root in request["path"] if root not in sys.path]
    out.mkdir()
    step = steps.resolve(request["runs"])
    step({name: Path(path) for name, path in request["inputs"].items()}, out, request["params"])


def _told(error: BaseException) -> dict[str, Any]:
    """What the parent needs to raise the same failure."""
    told: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    told["traceback"] = "".join(traceback.format_exception(error))
    if isinstance(error, PhipipeError):
        told["error"] = encoded(error)
    if isinstance(error, OSError):
        told["errno"] = error.errno
    if isinstance(error, subprocess.CalledProcessError):
        told["returncode"] = error.returncode
    for cause in _causes(error):
        if isinstance(cause, ImportError) and not isinstance(error, PhipipeError):
            told |= {"import": cause.name or "", "message": str(cause)}
    return told


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
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


class _Progress:
    """Writes reports to a file: atomically, not too often, and never without the last one."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, 0.0

    def __call__(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_EVERY_S or done >= total:
            self._last = now
            aside = self._path.with_suffix(".tmp")
            with contextlib.suppress(
                PermissionError
            ):  # Windows, while the parent reads: the next report will do
                aside.write_text(json.dumps([done, total, unit]), "utf-8")
                aside.replace(self._path)


def _reset_peak() -> None:
    """Start the kernel's high-water mark anew for this step (Linux ≥ 4.0: proc(5), clear_refs)."""
    with contextlib.suppress(
        OSError
    ):  # not Linux, or not allowed: the peak then covers the steps before too
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _memory() -> dict[str, int]:
    """Peak resident bytes of this process, and its anonymous bytes now.

    VmHWM on Linux, never ``ru_maxrss``, which a child inherits there across exec. On Windows the
    peak working set and on macOS ``ru_maxrss`` (its own there, but nothing resets it): of all this
    worker's steps.
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

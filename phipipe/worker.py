"""Child side: serves the steps of one run, one after another, in a toolchain's Python.

started as  ``PYTHON -P -c <bootstrap>`` (``process.python_command``); only phipipe's own folder is added
reads       one line per request on stdin: a folder with ``request.json``
            {"runs": "module:function", "inputs": {name: path}, "params": {...}, "log": path}
writes      FOLDER/out/            the step's files
            FOLDER/progress.json   now and then
            FOLDER/response.json   last; if it is missing, the worker died
says        one line on stdout per finished request; everything that steps print goes to the log
ends        when stdin does: the parent is done, or dead. Whatever still runs then is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from phipipe import errors, progress
from phipipe.errors import PhipipeError

PROGRESS_EVERY_S = 0.2
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", ""}


def main() -> None:
    """Serve requests until stdin ends."""
    control = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(null, 0)  # a step that asks for input gets none, instead of our requests
    threading.Thread(target=_listen, args=(lines, requests), daemon=True).start()
    sys.path += [p for p in os.environ.get("PHIPIPE_WORKER_PATH", "").split(os.pathsep) if p]
    sys.addaudithook(refuse)
    while True:
        folder = Path(requests.get())
        _serve(folder)
        print("done", file=control, flush=True)


def _listen(lines: Any, requests: queue.SimpleQueue[str]) -> None:
    for line in lines:
        requests.put(line.rstrip("\n"))
    end_tree()


def end_tree() -> None:
    """Kill this process and all that it started, at once."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: no pickle is ever loaded (promise S1), and no step but download leaves this machine (S8)."""
    if event == "pickle.find_class":
        raise PermissionError(f"refused to unpickle `{arguments[0]}.{arguments[1]}`: pickles can run code")
    if event == "socket.connect" and isinstance(arguments[1], tuple) and str(arguments[1][0]) not in LOCAL_HOSTS:
        raise PermissionError(f"refused to connect to {arguments[1][0]}: only the download step uses the network")
    if event == "socket.getaddrinfo" and str(arguments[0] or "") not in LOCAL_HOSTS:
        raise PermissionError(f"refused to look up {arguments[0]}: only the download step uses the network")


def _serve(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text("utf-8"))
    _log_to(Path(request["log"]))
    _reset_peak()
    progress.listen(_Progress(folder / "progress.json"))
    start = time.perf_counter()
    try:
        _call(request, folder / "out")
        response: dict[str, Any] = {"ok": True}
    except BaseException as error:  # noqa: BLE001 (whatever it was, the parent must hear of it)
        traceback.print_exc()
        response = {"ok": False, **_told(error)}
    sys.stdout.flush()
    sys.stderr.flush()
    response |= {"seconds": time.perf_counter() - start, **_memory()}
    aside = folder / "response.tmp"
    aside.write_text(json.dumps(response), "utf-8")
    aside.replace(folder / "response.json")


def _call(request: dict[str, Any], out: Path) -> None:
    out.mkdir()
    module, _, function = request["runs"].partition(":")
    step = getattr(importlib.import_module(module), function)
    step({name: Path(path) for name, path in request["inputs"].items()}, out, request["params"])


def _told(error: BaseException) -> dict[str, Any]:
    """What the parent needs to raise the same failure."""
    told: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, PhipipeError):
        known = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
        told |= {"kind": known, "phipipe": True, "message": error.message, "hint": error.hint}
    if isinstance(error, ImportError):
        told |= {"module": error.name}
    if isinstance(error, OSError):
        told |= {"errno": error.errno}
    return told


def _log_to(path: Path) -> None:
    """Send file descriptors 1 and 2 to ``path``: native code prints there too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


class _Progress:
    def __init__(self, path: Path) -> None:
        self._path, self._last = path, 0.0

    def __call__(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            aside = self._path.with_suffix(".tmp")
            aside.write_text(json.dumps([done, total, unit]), "utf-8")
            aside.replace(self._path)


def _reset_peak() -> None:
    """Start the kernel's high-water mark anew for this step (Linux ≥ 4.0: proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:  # not Linux, or not allowed: the peak then covers the steps before too
        return


def _memory() -> dict[str, int]:
    """Peak resident bytes of this process, and its anonymous part now."""
    from phipipe.measure import peak_bytes

    return {"peak_rss_bytes": peak_bytes()}

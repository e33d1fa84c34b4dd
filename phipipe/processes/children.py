"""Processes that we start: in a Python that may be another's, in a group of their own, and ended as
a whole.

Toolchains import this: the standard library alone, and psutil where it is there.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypedDict

if TYPE_CHECKING:
    import psutil

PARENT_S = 1.0

# Makes phipipe importable in a toolchain's Python, and nothing of what is installed beside it.
BOOTSTRAP = """
import importlib.util, os, sys
folder = sys.argv.pop()
spec = importlib.util.spec_from_file_location(
    "phipipe", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
sys.modules["phipipe"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


class Group(TypedDict, total=False):
    """What ``Popen`` is told of a process with a group of its own."""

    creationflags: int
    start_new_session: bool


def python_command(python: Path, call: str, *arguments: str) -> list[str]:
    """The command that runs ``call`` in ``python`` with phipipe, alone, importable."""
    return [str(python), "-P", "-c", BOOTSTRAP + call, *arguments, str(Path(__file__).parents[1])]


def own_group() -> Group:
    """What makes ``Popen`` start a process that gets no Ctrl-C of ours, and can be ended with all
    that it starts."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def tree(pid: int) -> list[psutil.Process]:
    """psutil's view of process ``pid`` and all that descend from it; nothing without psutil."""
    try:
        import psutil
    except ImportError:  # a toolchain of the user's own may lack it
        return []
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.Error:
        return []


def kill_tree(pid: int, seen: Sequence[psutil.Process] = ()) -> None:
    """Kill the process group of ``pid``, its descendants that left the group, and those ``seen``
    before."""
    members = [*tree(pid), *seen]
    strays = [member for member in members if member.pid not in (pid, os.getpid())]
    for stray in strays:  # before the group: we may be in it ourselves
        _end(stray)
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    else:
        for member in members:
            _end(member)


def _end(process: psutil.Process) -> None:
    import psutil

    # gone meanwhile; psutil checks that the id was not used again
    with contextlib.suppress(psutil.Error):
        process.kill()


def end_with_parent() -> None:
    """From now on, end this process when the one that started it is gone; nothing on Windows."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_S)
        os._exit(1)

    if sys.platform != "win32":
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def has_exited(process: subprocess.Popen[str]) -> bool:
    """Whether ``process`` has ended; it is left unreaped where that can be, so that nobody else
    gets its id yet."""
    if process.returncode is None and sys.platform != "win32" and hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def await_exit(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait so many ``seconds`` at the longest until ``process`` has ended."""
    end = time.monotonic() + seconds
    while not has_exited(process) and time.monotonic() < end:
        time.sleep(0.01)


def terminate(process: subprocess.Popen[str]) -> None:
    """Ask ``process`` and its group to end."""
    if sys.platform == "win32":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)


def reap(process: subprocess.Popen[str], seen: Sequence[psutil.Process], seconds: float) -> None:
    """Kill ``process`` with all that it started, if it still runs, and take its exit code."""
    if process.returncode is None:  # once it is reaped, its id may be another's
        kill_tree(process.pid, seen)
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        assert process.stdin is not None
        process.stdin.close()
        process.wait(seconds)


def read_lines(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    """Put every line that a child writes into ``lines``, and an empty one at its end; a thread's
    work."""
    with contextlib.suppress(ValueError, OSError), stream:
        for line in stream:
            lines.put(line.strip())
    lines.put("")

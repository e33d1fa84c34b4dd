"""Child side of ``limited``: does what strangers' files can make endless, and dies of it alone.

reads   one request per line on stdin, as JSON
        {"id", "call", "arguments", "cpu_s", "memory", "reply"}: limits in seconds of CPU, bytes
        above what the child had before, and characters of the answer
says    one answer per line on stdout: {"id", "value"}, or {"id", "over" | "raised" | "missing",
"message"} ends    when stdin does, and after anything that may have left it without memory
dies    by SIGPROF when its CPU time is up: native code that holds the interpreter's lock hears of
nothing else

Where the system cannot limit a process (Windows; memory on macOS), the parent looks on and kills.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from phipipe import hardware
from phipipe.processes import prohibitions
from phipipe.steps import Json

if sys.platform != "win32":
    import resource

NO_MEMORY = re.compile(r"bad[_ ]?alloc|allocate|out of memory|length_error|max_size", re.IGNORECASE)
TOLD = 500  # characters of an exception's message
NEVER = "torch"  # transformers would import it, and takes seconds more: no tokenizer needs it
# Plain English with what makes careless patterns slow: long runs of one kind, then something else.
TRIAL = f"It's 2024, isn't it?\n{'a' * 48}!{' ' * 48}.\n\n{'1' * 48}x{'aA' * 24}_{'-' * 48}\n"


class Server:
    """Answers requests with what was opened."""

    def __init__(self) -> None:
        self._opened: Any = None
        self._base: dict[str, int] = {}

    def answer(self, request: Mapping[str, Json]) -> dict[str, Json]:
        """What to say to ``request``; whatever is raised becomes an answer too."""
        calls: dict[str, Callable[..., Any]] = {
            "import": self.load,
            "compile": self.compile,
            "open": self.open,
        }
        call = calls.get(request["call"]) or functools.partial(self.invoke, request["call"])
        try:
            with self._limits(request["cpu_s"], request["memory"]):
                value = call(*request["arguments"])
            length = len(value) if isinstance(value, str | list) else 0
        except ImportError as error:
            return {"missing": error.name or "", "message": str(error)[:TOLD]}
        except (MemoryError, RecursionError, OverflowError) as error:
            return {
                "over": type(error).__name__,
                "message": str(error)[:TOLD],
                "peak": _sizes().get("VmHWM", 0),
            }
        except BaseException as error:  # noqa: BLE001 (templates and libraries raise anything)
            over = {"over": "MemoryError"} if NO_MEMORY.search(str(error)[:TOLD]) else {}
            return {"raised": type(error).__name__, "message": str(error)[:TOLD], **over}
        return {"value": value} if length <= request["reply"] else {"over": "reply", "message": ""}

    def load(self, wanted: Sequence[str]) -> dict[str, int]:
        """Import ``module:attribute``s: our own libraries, whose weight is nobody's fault."""
        sys.modules[NEVER] = None  # type: ignore[assignment]
        for name in wanted:
            module, _, attribute = name.partition(":")
            imported = importlib.import_module(module)
            if attribute:
                getattr(imported, attribute)
        return _sizes()

    def compile(self, template: str) -> None:
        """Compile a chat template, as transformers does."""
        importlib.import_module("phipipe.sandbox.jinja_templates").Template(template)

    def open(self, opener: str, arguments: Sequence[str], trial: bool) -> Any:
        """Make the object that later calls go to, by ``module:function``; a tokenizer is tried on a
        text."""
        module, _, function = opener.partition(":")
        self._opened = getattr(importlib.import_module(module), function)(*arguments)
        if trial:
            self._opened.decode(self._opened.encode(TRIAL))
        self._base = _sizes()  # what it may take from now on is counted from here
        return self._opened.facts() if hasattr(self._opened, "facts") else {}

    def invoke(self, name: str, *arguments: Any) -> Any:
        """Call a public method of what was opened."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._opened, name)(*arguments)

    @contextlib.contextmanager
    def _limits(self, cpu_s: float, memory: int) -> Iterator[None]:
        """What runs in this block is killed, or fails, beyond these."""
        if sys.platform == "win32":
            yield
            return
        base, before = self._base or _sizes(), {}
        # Address space is reserved more than it is used: by each thread's heap.
        for name, kind, room in (
            ("VmData", resource.RLIMIT_DATA, memory),
            ("VmSize", resource.RLIMIT_AS, 4 * memory),
        ):
            if name in base:
                before[kind] = resource.getrlimit(kind)
                wanted, most = base[name] + room, before[kind][1]
                resource.setrlimit(kind, (wanted if most < 0 else min(wanted, most), most))
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            for kind, limits in before.items():
                resource.setrlimit(kind, limits)


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent
    control = os.fdopen(os.dup(1), "w", encoding="ascii")
    lines = os.fdopen(os.dup(0), encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    prohibitions.prohibit()
    server = Server()
    for line in lines:
        request = json.loads(line)
        answer = server.answer(request)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"id": request["id"], **answer}), file=control, flush=True)
        if "over" in answer:
            os._exit(0)


def _sizes() -> dict[str, int]:
    """Bytes of writable memory, of address space, and the most that was in memory; nothing where it
    is not told."""
    with contextlib.suppress(OSError, ValueError):
        return hardware.memory_of(os.getpid())
    return {}

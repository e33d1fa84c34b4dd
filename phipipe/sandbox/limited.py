"""Strangers' chat templates and tokenizers, in a child that is limited: none takes more than it
should, none hangs.

A template is a program, a tokenizer a pile of patterns and replacements: ten characters of either
can ask for all memory, or for ever. Whatever library reads them, it does so in a child
(``child``) with limits of CPU time and memory on every call; how such a child ended is told
in one sentence. It starts with the first call and serves until nobody has the object any more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import PhipipeError, SourceError, StepFailed, StepKilled, ToolchainError
from phipipe.processes.children import python_command, read_lines
from phipipe.sandbox.watch import IMPORT, OPEN, RENDER, SAMPLE_S, Bounds, Watch, excess
from phipipe.settings import child_environment
from phipipe.steps import Json

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
CRASHES = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP"}


class Raised(StepFailed):
    """What was called raised an exception of its own, within its limits; ``kind`` is the
    exception's class."""

    DETAILS = ("kind",)

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Opening:
    """What a child opens: ``opener`` ("module:function") called with ``arguments``, within
    ``bounds``.

    ``imports`` are "module:attribute"s that are loaded before any limit counts. ``whose`` and
    ``what`` stand in messages. With ``templates``, by name, it is a tokenizer: these are compiled
    before it is opened, since runtimes do so with parsers that take their time, and it is tried on
    a text then. The child runs in ``python``, without which it is this one.
    """

    opener: str
    arguments: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    whose: str = "package"
    what: str = "tokenizer"
    bounds: Bounds = OPEN
    templates: Mapping[str, str] | None = None
    python: Path | None = None


class Child:
    """A child that opens one object and calls its methods within limits."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None
        self.facts: dict[str, Json] = {}

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Open the object, if that was not done yet.

        Raises:
            SourceError: opening it took more than it may.
            StepFailed: opening it raised.
            ToolchainError: the child cannot be started.
            ImportError: this Python lacks a library.
        """
        with self._lock:
            self._ensure()

    def call(self, method: str, *arguments: Json, bounds: Bounds, what: str) -> Json:
        """What ``method`` returns; ``what`` is the thing that is limited, in words.

        Raises:
            SourceError: it took more than ``bounds``, or crashed.
            Raised: it raised.
            StepKilled: the child was killed by something else.
            ToolchainError: the child cannot be started.
            ImportError: this Python lacks a library.
        """
        with self._lock:
            self._ensure()
            return self._ask(method, arguments, bounds, what)

    def close(self) -> None:
        """End the child; the next call would start another."""
        self._process, end = None, self._end
        if end is not None:
            end()

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        process = _started(self._opening.python or Path(sys.executable))
        self._process, self._lines = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _finish, process)
        threading.Thread(target=read_lines, args=(process.stdout, self._lines), daemon=True).start()
        try:
            self._ask("import", [[*self._opening.imports, "jinja2.sandbox"]], IMPORT, "libraries")
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        opening = self._opening
        for name, text in (opening.templates or {}).items():
            self._compile(name, text)
        tokenizer = opening.templates is not None
        arguments = [opening.opener, opening.arguments, tokenizer]
        try:
            self.facts = self._ask("open", arguments, opening.bounds, opening.what)
        except Raised as error:
            raise SourceError(
                f"the {opening.whose}'s {opening.what} cannot be used: {error}",
                hint="take its files again from where they came from, all from one place",
            ) from None

    def _compile(self, name: str, text: str) -> None:
        try:
            self._ask("compile", [text], RENDER, "chat template")
        except Raised as error:
            raise SourceError(
                f"the {self._opening.whose}'s chat template `{name}` is no valid one: {error}"
            ) from None

    def _ask(self, method: str, arguments: Sequence[Json], bounds: Bounds, what: str) -> Json:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        number = next(self._numbers)
        request = {"id": number, "call": method, "arguments": arguments}
        request |= {"cpu_s": bounds.cpu_s, "memory": bounds.memory, "reply": bounds.reply}
        watch = Watch(process.pid, bounds)
        try:
            with contextlib.suppress(OSError):  # it has just died: _wait will see that
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
        except BaseException:  # Ctrl-C: half a request may be on its way
            self.close()
            raise
        answer = self._wait(number, watch)
        if isinstance(answer, str):
            self.close()
            raise self._over(what, answer)
        if answer is None:
            code = process.wait()
            self.close()
            raise self._died(what, code, bounds)
        return self._value(answer, bounds, what)

    def _wait(self, number: int, watch: Watch) -> dict[str, Json] | str | None:
        """The answer; or what it took too much of; or None when the child is gone."""
        while True:
            try:
                line = self._lines.get(timeout=SAMPLE_S)
            except queue.Empty:
                if over := watch.over():
                    return over
                continue
            if not line:
                return None
            answer: dict[str, Json] = json.loads(line)
            if answer["id"] == number:  # others were asked by who did not wait for the answer
                return answer

    def _value(self, answer: Mapping[str, Json], bounds: Bounds, what: str) -> Json:
        if "value" in answer:
            return answer["value"]
        message = str(answer["message"])
        if "missing" in answer:
            raise ImportError(message, name=answer["missing"] or None)
        if "over" in answer:
            self.close()
            raise self._over(what, excess(str(answer["over"]), bounds))
        raise Raised(message, kind=answer["raised"])

    def _over(self, what: str, excess: str) -> SourceError:
        return SourceError(
            f"the {self._opening.whose}'s {what} {excess}: it is refused",
            hint=f"take the {what} from the original model's repository",
        )

    def _died(self, what: str, code: int, bounds: Bounds) -> PhipipeError:
        name = ending(code)
        if name in ("SIGPROF", "SIGXCPU"):
            return self._over(what, excess("cpu", bounds))
        if name in CRASHES or code >= 0xC0000000:
            return self._over(what, f"makes the program that reads it crash ({name})")
        if name == "SIGKILL":
            return StepKilled(
                f"reading the {self._opening.whose}'s {what} was killed by SIGKILL: most likely "
                "the system ran out of memory",
                hint="close other programs",
            )
        if name.startswith("SIG"):
            return StepKilled(f"reading the {self._opening.whose}'s {what} was ended by {name}")
        return ToolchainError(
            f"`{self._opening.python or sys.executable}` cannot run phipipe's own code ({name})"
        )


def _started(python: Path) -> subprocess.Popen[str]:
    code = "from phipipe.sandbox.child import main; main()"
    try:
        return subprocess.Popen(
            python_command(python, code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env=child_environment(offline=True, keep_path=True) | ONE_THREAD,
        )
    except OSError as error:
        raise ToolchainError(f"`{python}` cannot be started: {error.strerror}") from None


def ending(code: int) -> str:
    """A process's exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}" if code < 256 else f"exit code {code:#x}"


def _finish(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)

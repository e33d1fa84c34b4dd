"""Strangers' chat templates and tokenizers, in a child that is limited: none takes more than it
should, none hangs.

A template is a program, a tokenizer a pile of patterns and replacements: ten characters of either
can ask for all memory, or for ever. Whatever library reads them, it does so in a child
(``limited_child``) with limits of CPU time and memory on every call; how such a child ended is told
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
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from phipipe.errors import PhipipeError, SourceError, StepFailed, StepKilled, ToolchainError
from phipipe.processes.children import python_command
from phipipe.sandbox import template_files
from phipipe.settings import child_environment

MIB = 2**20
SAMPLE_S = 0.05
WALL_FACTOR, WALL_S = (
    15,
    60.0,
)  # a busy machine's seconds for one of CPU, and what is allowed on top
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
CRASHES = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP"}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one call may take: CPU time, memory above what the child had before, characters of the
    answer."""

    cpu_s: float
    memory: int
    reply: int = 64 * MIB


RENDER = Bounds(cpu_s=2, memory=256 * MIB, reply=16 * MIB)
IMPORT = Bounds(cpu_s=300, memory=16 * 1024 * MIB)
OPEN = Bounds(cpu_s=20, memory=1024 * MIB)


def for_text(length: int) -> Bounds:
    """For a text of ``length`` characters or tokens: slow tokenizers do 50,000 a second."""
    return Bounds(
        cpu_s=20 + length / 20_000, memory=1024 * MIB + 512 * length, reply=MIB + 256 * length
    )


class Raised(StepFailed):
    """What was called raised an exception of its own, within its limits; ``kind`` is the
    exception's class."""

    DETAILS = ("kind",)

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Child:
    """A child that opens one object by ``opener`` ("module:function") and calls its methods within
    limits.

    ``imports`` are "module:attribute"s that are loaded before any limit counts. ``whose`` and
    ``what`` stand in messages. ``bounds`` are those of opening; with ``templates``, by name, it is
    a tokenizer: these are compiled before it is opened, since runtimes do so with parsers that take
    their time, and it is tried on a text then.
    """

    def __init__(
        self,
        opener: str,
        *arguments: str,
        imports: Sequence[str] = (),
        whose: str = "package",
        what: str = "tokenizer",
        bounds: Bounds = OPEN,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        self._opener, self._arguments, self._imports = opener, arguments, tuple(imports)
        self._whose, self._what, self._bounds, self._templates = whose, what, bounds, templates
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._end: weakref.finalize[Any, Any] | None = None
        self.facts: dict[str, Any] = {}

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

    def call(self, method: str, *arguments: Any, bounds: Bounds, what: str) -> Any:
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
        try:
            process = subprocess.Popen(
                python_command(Path(sys.executable), "from phipipe.sandbox.child import main; main()"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii",
                env=child_environment(offline=True, keep_path=True) | ONE_THREAD,
            )  # fmt: skip
        except OSError as error:
            raise ToolchainError(
                f"`{sys.executable}` cannot be started: {error.strerror}"
            ) from None
        self._process, self._lines = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _finish, process)
        threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True).start()
        try:
            self._ask("import", [[*self._imports, "jinja2.sandbox"]], IMPORT, "libraries")
            tokenizer = self._templates is not None
            for name, text in (self._templates or {}).items():
                self._compile(name, text)
            try:
                self.facts = self._ask(
                    "open", [self._opener, self._arguments, tokenizer], self._bounds, self._what
                )
            except Raised as error:
                raise SourceError(
                    f"the {self._whose}'s {self._what} cannot be used: {error}"
                ) from None
        except BaseException:
            self.close()
            raise

    def _compile(self, name: str, text: str) -> None:
        try:
            self._ask("compile", [text], RENDER, "chat template")
        except Raised as error:
            raise SourceError(
                f"the {self._whose}'s chat template `{name}` is no valid one: {error}"
            ) from None

    def _ask(self, method: str, arguments: Sequence[Any], bounds: Bounds, what: str) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        number = next(self._numbers)
        request = {"id": number, "call": method, "arguments": arguments}
        request |= {"cpu_s": bounds.cpu_s, "memory": bounds.memory, "reply": bounds.reply}
        watch = _Watch(process.pid, bounds)
        try:
            with contextlib.suppress(OSError):  # it has just died: _wait will see that
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
        except BaseException:  # Ctrl-C: half a request may be on its way
            self.close()
            raise
        told = self._wait(number, watch)
        if isinstance(told, str):
            self.close()
            raise self._over(what, told)
        if told is None:
            code = process.wait()
            self.close()
            raise self._died(what, code, bounds)
        return self._value(told, bounds, what)

    def _wait(self, number: int, watch: _Watch) -> dict[str, Any] | str | None:
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
            told: dict[str, Any] = json.loads(line)
            if told["id"] == number:  # others were asked by who did not wait for the answer
                return told

    def _value(self, told: Mapping[str, Any], bounds: Bounds, what: str) -> Any:
        if "value" in told:
            return told["value"]
        message = str(told["message"])
        if "missing" in told:
            raise ImportError(message, name=told["missing"] or None)
        if "over" in told:
            self.close()
            raise self._over(what, _excess(str(told["over"]), bounds))
        raise Raised(message, kind=told["raised"])

    def _over(self, what: str, excess: str) -> SourceError:
        return SourceError(
            f"the {self._whose}'s {what} {excess}: it is refused",
            hint=f"take the {what} from the original model's repository",
        )

    def _died(self, what: str, code: int, bounds: Bounds) -> PhipipeError:
        name = ending(code)
        if name in ("SIGPROF", "SIGXCPU"):
            return self._over(what, _excess("cpu", bounds))
        if name in CRASHES or code >= 0xC0000000:
            return self._over(what, f"makes the program that reads it crash ({name})")
        if name == "SIGKILL":
            return StepKilled(
                f"reading the {self._whose}'s {what} was killed by SIGKILL: most likely the "
                f"system ran out of memory",
                hint="close other programs",
            )
        if name.startswith("SIG"):
            return StepKilled(f"reading the {self._whose}'s {what} was ended by {name}")
        return ToolchainError(f"`{sys.executable}` cannot run phipipe's own code ({name})")


class LimitedTokenizer:
    """``Tokenizer`` over one that lives in a limited child; see ``transformers_tokenizer`` for what
    ``facts`` holds."""

    def __init__(self, child: Child) -> None:
        self._child = child
        child.start()
        self.facts = child.facts

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of ``text``; with ``special``, those that the tokenizer adds to a text too
        (transformers' only)."""
        more = [True] if special else []
        found: list[int] = self._child.call(
            "encode", text, *more, bounds=for_text(len(text)), what="tokenizer"
        )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""
        return str(
            self._child.call("decode", list(ids), bounds=for_text(len(ids)), what="tokenizer")
        )

    def token(self, number: int) -> str:
        """What stands in the vocabulary as ``number`` (transformers' only)."""
        return str(self._child.call("token", number, bounds=for_text(1), what="tokenizer"))

    def render(self, messages: Sequence[Mapping[str, str]], ask: bool = True) -> str:
        """A chat in the template; ready for the answer with ``ask`` (without it, transformers'
        only)."""
        more = [] if ask else [False]
        chat = [dict(message) for message in messages]
        return str(self._child.call("render", chat, *more, bounds=RENDER, what="chat template"))

    def close(self) -> None:
        """End the child."""
        self._child.close()


def tokenizer(
    opener: str, folder: Path, imports: Sequence[str], whose: str = "package"
) -> LimitedTokenizer:
    """The tokenizer that ``opener`` ("module:function") makes of ``folder``, in a limited child.

    Raises:
        SourceError: reading it, or a text with it, took more than it may.
        StepFailed: its library refused it.
        ImportError: this Python lacks a library.
    """
    templates = template_files.read(folder) if folder.is_dir() else {}
    return LimitedTokenizer(
        Child(opener, str(folder), imports=imports, whose=whose, templates=templates)
    )


def ending(code: int) -> str:
    """A process's exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}" if code < 256 else f"exit code {code:#x}"


class _Watch:
    """Looks on where the child cannot be limited by its system, or sleeps."""

    def __init__(self, pid: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._deadline = time.monotonic() + WALL_S + WALL_FACTOR * bounds.cpu_s
        self._process = self._cpu = self._rss = None
        with contextlib.suppress(ImportError):  # a toolchain of the user's own may lack it
            import psutil

            with contextlib.suppress(psutil.Error):
                self._process = psutil.Process(pid)
                self._cpu, self._rss = self._seen()

    def over(self) -> str | None:
        """What the child took too much of."""
        if time.monotonic() > self._deadline:
            return f"gave no answer within {WALL_S + WALL_FACTOR * self._bounds.cpu_s:.0f} s"
        if self._process is None or self._cpu is None or self._rss is None:
            return None
        import psutil

        try:
            cpu, rss = self._seen()
        except psutil.Error:  # it is gone: its pipe says so
            return None
        if cpu - self._cpu > self._bounds.cpu_s + SAMPLE_S:
            return _excess("cpu", self._bounds)
        return _excess("memory", self._bounds) if rss - self._rss > self._bounds.memory else None

    def _seen(self) -> tuple[Any, Any]:
        assert self._process is not None
        times = self._process.cpu_times()
        return times.user + times.system, self._process.memory_info().rss


def _excess(kind: str, bounds: Bounds) -> str:
    words = {
        "cpu": f"computes for more than {bounds.cpu_s:.0f} s",
        "RecursionError": "calls itself without end",
        "OverflowError": "counts further than it may",
        "reply": f"makes more than {bounds.reply} characters",
    }
    return words.get(kind, f"takes more than {bounds.memory // MIB} MiB of memory")


def _read(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError), stream:
        for line in stream:
            lines.put(line.strip())
    lines.put("")


def _finish(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)

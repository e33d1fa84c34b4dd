"""What happens in a run, as JSON objects, one per line: for programs that watch it, and kept for
``phipipe runs``.

Every event has ``event``, ``time`` (UTC, ISO 8601) and ``run``; names in [] are there where they
are known:

- ``run_started``: version (of this list), phipipe, command, builds, pid, process_started (seconds
  since 1970)
- ``step_started``: step, why, needs (all steps that it reads or follows), waits (what it waited
  for besides the run's own work, each: for (result, memory, slot, alone, toolchain), step or
  toolchain (whose end ended the wait), seconds)
- ``step_progress``: step (or the toolchain that is being installed), done, total, unit, share (0 to
  1), [seconds_left]; at most every ``PROGRESS_S`` for each step
- ``step_finished``: step, cached, shared (it was on another machine), key, digest, bytes, [seconds,
  peak_anon_bytes, peak_rss_bytes, cpu_seconds, read_bytes and written_bytes (from and to disks),
  scored_tokens, generated_tokens, layers_read and layers_given (of layers that several steps
  shared: those that it read for all, those that another one read), gpu (what PyTorch computed on,
  if not the CPU), peak_gpu_bytes (of its memory), machine (who did it, if not this one)]
- ``step_failed``: step, and the error: exit_code, kind, message, [hint, problems (each: message,
  file, line, column), details]
- ``toolchain_started``: toolchain (that is being installed)
- ``toolchain_finished``: toolchain, seconds, [the error]
- ``warning``: build, rule, level, message, hint (what to do; null where nothing can be done)
- ``note``: text
- ``build_finished``: build, ok, seconds, [package, or the error]
- ``run_finished``: exit_code, seconds, [cpu_seconds, read_bytes, written_bytes: of the whole run on
  this machine]

A run's events lie in ``runs/ID/events.jsonl`` of the cache; the last ``KEPT`` runs are kept.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from phipipe import __version__
from phipipe.errors import Interrupted, PhipipeError, StoreError, encoded
from phipipe.execution import past_runs, tracing
from phipipe.execution.held import NOT_HELD, Held
from phipipe.execution.pace import Pace
from phipipe.execution.results import Listener, Result
from phipipe.execution.tracing import Sink
from phipipe.processes import spending
from phipipe.steps import Advice, Json
from phipipe.visible import json_text

VERSION = 1
PROGRESS_S = 5.0
KEPT = 200  # runs
BUG = 70  # the exit code of an error that is none of ours


def now() -> str:
    """The time of an event."""
    return (
        datetime.datetime.now(datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def failure(error: PhipipeError) -> dict[str, Json]:
    """What events say of an error."""
    whole = encoded(error)
    return {"exit_code": whole.pop("code")} | {name: x for name, x in whole.items() if x}


class Recorder:
    """A listener that hands everything on to ``inner``, writes it to ``streams`` and gives it to
    ``sinks``."""

    def __init__(
        self, run: str, inner: Listener, streams: Sequence[TextIO], sinks: Sequence[Sink] = ()
    ) -> None:
        self._run, self._inner, self._streams, self._sinks = run, inner, streams, sinks
        self._reported: dict[str, float] = {}
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._writing = threading.Lock()
        self.code = 0  # the highest exit code of the builds so far

    def write(self, event: str, **fields: Json) -> None:
        """One event, to be seen at once."""
        whole = {"event": event, "time": now(), "run": self._run, **fields}
        with self._writing:  # notes come from any thread
            for stream in self._streams:
                # with its end, at once: the store speaks to the same stream
                stream.write(f"{json_text(whole, encoding=stream.encoding)}\n")
                stream.flush()
            for sink in self._sinks:
                sink(whole)

    def begun(self, command: str, builds: Sequence[str]) -> None:
        """The run begins, in this process."""
        process = psutil.Process()
        self.write(
            "run_started",
            version=VERSION,
            phipipe=__version__,
            command=command,
            builds=list(builds),
            pid=process.pid,
            process_started=process.create_time(),
        )

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None:
        waits = [wait.as_json() for wait in held.waits]
        self.write("step_started", step=label, why=why, needs=list(held.needs), waits=waits)
        self._inner.started(label, why, held)

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        heard = self._paces[label].heard(done, total, unit)
        if time.monotonic() - self._reported.get(label, -PROGRESS_S) >= PROGRESS_S:
            self._reported[label] = time.monotonic()
            left = {} if heard.left_s is None else {"seconds_left": round(heard.left_s, 1)}
            facts = {"done": done, "total": total, "unit": unit, "share": round(heard.share, 4)}
            self.write("step_progress", step=label, **facts, **left)
        self._inner.progress(label, done, total, unit)

    def finished(self, label: str, result: Result) -> None:
        where = {"machine": result.machine} if result.machine else {}
        self.write(
            "step_finished",
            step=label,
            cached=result.cached,
            shared=result.shared,
            key=result.key,
            digest=result.stored.digest,
            bytes=result.stored.size_bytes,
            **result.usage,
            **where,
        )
        self._inner.finished(label, result)

    def failed(self, label: str, error: PhipipeError) -> None:
        self.write("step_failed", step=label, **failure(error))
        self._inner.failed(label, error)

    def installing(self, toolchain: str) -> None:
        self.write("toolchain_started", toolchain=toolchain)
        self._inner.installing(toolchain)

    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None:
        why = failure(error) if error else {}
        self.write("toolchain_finished", toolchain=toolchain, seconds=round(seconds, 3), **why)
        self._inner.installed(toolchain, seconds, error)

    def note(self, line: str) -> None:
        self.write("note", text=line)
        self._inner.note(line)

    def advised(self, build: str, warnings: Iterable[Advice]) -> None:
        """What the rules say of a build that is done all the same."""
        for warning in warnings:
            self.write("warning", build=build, **warning.as_json())

    def ended(
        self,
        build: str,
        error: PhipipeError | None,
        seconds: float = 0.0,
        package: Path | None = None,
    ) -> None:
        """A build is done, or has failed."""
        self.code = max(self.code, error.exit_code if error else 0)
        more = {"package": str(package)} if package else {}
        more |= failure(error) if error else {}
        ok, seconds = error is None, round(seconds, 3)
        self.write("build_finished", build=build, ok=ok, seconds=seconds, **more)


@contextlib.contextmanager
def recorded(
    cache: Path, command: str, builds: Sequence[str], inner: Listener, stream: TextIO | None = None
) -> Iterator[Recorder]:
    """Record a run of ``builds``; ``stream`` gets its events as they come, too.

    What the block raises, or else the highest exit code that ``Recorder.ended`` was told of, is how
    the run ended.

    Raises:
        StoreError: the cache takes no file.
        ToolchainError: see ``tracing.spans``.
    """
    start, before = time.monotonic(), spending.of_process()
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(tracing.spans(inner.note))
        folder = _new(cache)
        kept = stack.enter_context(
            (folder / past_runs.FILE).open("w", encoding="utf-8", newline="\n")
        )
        recorder = Recorder(folder.name, inner, [kept, *([stream] if stream else [])], sinks)
        recorder.begun(command, builds)
        code = BUG
        try:
            yield recorder
            code = recorder.code
        except PhipipeError as error:
            code = error.exit_code
            raise
        except KeyboardInterrupt:
            code = Interrupted.exit_code
            raise
        finally:
            seconds = round(time.monotonic() - start, 3)
            spent = spending.of_process().since(before).usage() if spending.IS_WHOLE else {}
            recorder.write("run_finished", exit_code=code, seconds=seconds, **spent)


def _new(cache: Path) -> Path:
    """A folder for a run that begins now; the oldest ones beyond ``KEPT`` are removed."""
    home = cache / "runs"
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = home / f"{stamp}-{secrets.token_hex(1)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        hint = "set PHIPIPE_CACHE to a folder that can be written to"
        raise StoreError(
            f"no run can be recorded in `{home}`: {error.strerror}", hint=hint
        ) from None
    for old in sorted(home.iterdir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder

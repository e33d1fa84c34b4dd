"""What happens in a run, as JSON objects, one per line: for programs that watch it, and kept for
``phipipe runs``.

Every event has ``event``, ``time`` (UTC, ISO 8601) and ``run``; names in [] are there where they
are known:

- ``run_started``: version (of this list), phipipe, command, builds, pid, process_started (seconds
  since 1970)
- ``step_started``: step, why
- ``step_progress``: step, done, total, unit; at most every ``PROGRESS_S`` for each step
- ``step_finished``: step, cached, shared (it was on another machine), key, digest, bytes, [seconds,
  peak_anon_bytes, peak_rss_bytes, machine (who did it, if not this one)]
- ``step_failed``: step, and the error: exit_code, kind, message, [hint, problems (each: message,
  file, line, column), details]
- ``toolchain_started``: toolchain (that is being installed)
- ``toolchain_finished``: toolchain, seconds, [the error]
- ``warning``: build, rule, level, message, hint (what to do; null where nothing can be done)
- ``note``: text
- ``build_finished``: build, ok, seconds, [package, or the error]
- ``run_finished``: exit_code, seconds

A run's events lie in ``runs/ID/events.jsonl`` of the cache; the last ``KEPT`` runs are kept.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil

from phipipe import __version__
from phipipe.errors import Interrupted, PhipipeError, SourceError, StoreError, encoded
from phipipe.package.figures import peaks
from phipipe.run import tracing
from phipipe.run.bench import Listener, Result
from phipipe.run.tracing import Sink
from phipipe.steps import Advice
from phipipe.visible import json_text

VERSION = 1
PROGRESS_S = 5.0
KEPT = 200  # runs
FILE = "events.jsonl"
LATEST = "latest"
BUG = 70  # the exit code of an error that is none of ours


def now() -> str:
    """The time of an event."""
    return (
        datetime.datetime.now(datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def failure(error: PhipipeError) -> dict[str, Any]:
    """What events say of an error."""
    told = encoded(error)
    return {"exit_code": told.pop("code")} | {name: value for name, value in told.items() if value}


class Recorder:
    """A listener that hands everything on to ``inner``, writes it to ``streams`` and gives it to
    ``sinks``."""

    def __init__(
        self, run: str, inner: Listener, streams: Sequence[TextIO], sinks: Sequence[Sink] = ()
    ) -> None:
        self._run, self._inner, self._streams, self._sinks = run, inner, streams, sinks
        self._said: dict[str, float] = {}
        self._writing = threading.Lock()
        self.code = 0  # the highest exit code of the builds so far

    def write(self, event: str, **told: Any) -> None:
        """One event, to be seen at once."""
        whole = {"event": event, "time": now(), "run": self._run, **told}
        with self._writing:  # notes come from any thread
            for stream in self._streams:
                stream.write(
                    f"{json_text(whole, encoding=stream.encoding)}\n"
                )  # with its end, at once: the store speaks to the same stream
                stream.flush()
            for sink in self._sinks:
                sink(whole)

    def started(self, label: str, why: str) -> None:
        self.write("step_started", step=label, why=why)
        self._inner.started(label, why)

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        if time.monotonic() - self._said.get(label, -PROGRESS_S) >= PROGRESS_S:
            self._said[label] = time.monotonic()
            self.write("step_progress", step=label, done=done, total=total, unit=unit)
        self._inner.progress(label, done, total, unit)

    def finished(self, label: str, result: Result) -> None:
        told = {
            "cached": result.cached,
            "shared": result.shared,
            "key": result.key,
            "digest": result.stored.digest,
        }
        where = {"machine": result.machine} if result.machine else {}
        self.write(
            "step_finished",
            step=label,
            **told,
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
        told = failure(error) if error else {}
        self.write("toolchain_finished", toolchain=toolchain, seconds=round(seconds, 3), **told)
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
        told: dict[str, Any] = {"build": build, "ok": error is None, "seconds": round(seconds, 3)}
        told |= {"package": str(package)} if package else {}
        self.code = max(self.code, error.exit_code if error else 0)
        self.write("build_finished", **told, **(failure(error) if error else {}))


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
    start, process = time.monotonic(), psutil.Process()
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(tracing.spans(inner.note))
        folder = _new(cache)
        kept = stack.enter_context((folder / FILE).open("w", encoding="utf-8", newline="\n"))
        recorder = Recorder(folder.name, inner, [kept, *([stream] if stream else [])], sinks)
        who = {"pid": process.pid, "process_started": process.create_time()}
        recorder.write(
            "run_started",
            version=VERSION,
            phipipe=__version__,
            command=command,
            builds=list(builds),
            **who,
        )
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
            recorder.write(
                "run_finished", exit_code=code, seconds=round(time.monotonic() - start, 3)
            )


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recorded run. ``state``: ok, failed, running, interrupted; ``seconds`` is None until it has
    ended."""

    id: str
    command: str
    started: str
    builds: tuple[str, ...]
    state: str
    exit_code: int | None
    seconds: float | None
    events: tuple[Mapping[str, Any], ...] = field(repr=False)


def read(folder: Path) -> list[dict[str, Any]]:
    """The events in a run's folder; a last line that a killed process has not finished is left out,
    as is damage."""
    found = []
    try:
        path = folder / FILE
        text = (
            path.read_bytes().decode("utf-8", "replace")
            if stat.S_ISREG(path.lstat().st_mode)
            else ""
        )
    except OSError:
        return []
    for written in text.splitlines():
        with contextlib.suppress(
            KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError
        ):
            event = json.loads(written)
            if isinstance(event, dict) and line(event) and _is_run(event):
                found.append(event)
    return found


def _is_run(event: Mapping[str, Any]) -> bool:
    """Whether all that others look up in ``event`` is there and of its type; ``line`` has looked at
    the rest."""
    if event["event"] in ("step_finished", "step_failed", "build_finished"):
        row(event)
    if event["event"] == "run_finished":
        return type(event["exit_code"]) is int and isinstance(event["seconds"], int | float)
    if event["event"] == "run_started":
        texts = (event["command"], event["time"], *event["builds"])
        return all(isinstance(text, str) for text in texts) and type(event["pid"]) is int
    return True


def runs(cache: Path) -> list[Run]:
    """All recorded runs, the newest first."""
    home = cache / "runs"
    folders = sorted(home.iterdir(), reverse=True) if home.is_dir() else []
    return [run for folder in folders if (run := _run(folder))]


def find(cache: Path, name: str) -> Run:
    """The run whose ID is, or begins with, ``name``; or the newest one: "latest".

    Raises:
        SourceError: there is none, or several begin so.
    """
    known = runs(cache)
    found = known[:1] if name == LATEST else [run for run in known if run.id.startswith(name)]
    if len(found) != 1:
        words = f"{len(found)} runs begin with" if found else "there is no run"
        raise SourceError(f"{words} `{name}`", hint="phipipe runs ls")
    return found[0]


def of_step(run: Run, step: str | None) -> list[Mapping[str, Any]]:
    """The events of ``run`` that are about ``step``, by its name or with its build's; None: all.

    Raises:
        SourceError: the run had no such step.
    """
    if step is None:
        return list(run.events)
    known = {str(event["step"]): event for event in run.events if "step" in event}
    short = {name.rpartition(": ")[2] for name in known}
    if step not in known and step not in short:
        close = difflib.get_close_matches(step[:200], [*short, *known], 1)
        guess = f"; did you mean `{close[0]}`?" if close else ""
        hint = f"steps: {', '.join(sorted(short))}" if short else f"phipipe runs show {run.id}"
        raise SourceError(f"the run {run.id} has no step `{step}`{guess}", hint=hint)
    return [event for event in run.events if step in _names(event)]


def _names(event: Mapping[str, Any]) -> tuple[str, str]:
    """A step's name with its build's, and alone."""
    name = str(event.get("step", ""))
    return name, name.rpartition(": ")[2]


def _run(folder: Path) -> Run | None:
    events = read(folder)
    if not events or events[0]["event"] != "run_started":
        return None
    first, last = events[0], events[-1]
    code = last.get("exit_code") if last["event"] == "run_finished" else None
    state = {
        None: "running" if _alive(first) else "interrupted",
        0: "ok",
        Interrupted.exit_code: "interrupted",
    }
    return Run(
        id=folder.name,
        command=first["command"],
        started=first["time"],
        builds=tuple(first["builds"]),
        state=state.get(code, "failed"),
        exit_code=code,
        seconds=last.get("seconds") if code is not None else None,
        events=tuple(events),
    )


def _alive(first: Mapping[str, Any]) -> bool:
    """Whether the process that wrote ``run_started`` is still there; its number may have come to
    another."""
    with contextlib.suppress(psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return abs(psutil.Process(first["pid"]).create_time() - float(first["process_started"])) < 1
    return False


def line(event: Mapping[str, Any]) -> str:
    """An event for people, and when it was."""
    return f"{event['time']}  {words(event)}"


def words(event: Mapping[str, Any]) -> str:
    """An event for people."""
    kind, step = event["event"], event.get("step", "")
    said: dict[str, Callable[[], str]] = {
        "run_started": lambda: f"{event['command']}: {', '.join(event['builds']) or 'nothing'}",
        "step_started": lambda: f"{step}  runs: {event['why']}",
        "step_progress": lambda: f"{step}  {event['done']} of {event['total']} {event['unit']}",
        "step_finished": lambda: _finished(event),
        "step_failed": lambda: (
            f"{step}  failed ({event['exit_code']}): {event['message']}{_hint(event)}"
        ),
        "toolchain_started": lambda: f"installing toolchain `{event['toolchain']}`",
        "toolchain_finished": lambda: _installed(event),
        "note": lambda: event["text"],
        "error": lambda: f"{event['message']}{_hint(event)}",
        "build_finished": lambda: _built(event),
        "run_finished": lambda: (
            f"ended with exit code {event['exit_code']} after {event['seconds']:.1f} s"
        ),
    }
    return said[kind]() if kind in said else json.dumps(dict(event))


def row(event: Mapping[str, Any]) -> dict[str, Any]:
    """How a step or a build ended, for a table."""
    state = "failed" if "exit_code" in event else "cached" if event.get("cached") else "done"
    seconds = event.get("seconds")
    resident, anonymous = (event.get(f"peak_{kind}_bytes") for kind in ("rss", "anon"))
    return {
        "what": event.get("step") or event["build"],
        "state": state,
        "seconds": None if seconds is None else round(seconds, 2),
        "peak_gib_anonymous": None if anonymous is None else round(anonymous / 2**30, 2),
        "peak_gib_resident": None if resident is None else round(resident / 2**30, 2),
        "why": (event.get("message") or "").partition("\n")[0] or None,
    }


def _finished(event: Mapping[str, Any]) -> str:
    if event["cached"]:
        origin = "  from the shared store" if event.get("shared") else ""
        return f"{event['step']}  cached  {event['key'][:12]}{origin}"
    where = f", on {event['machine']}" if event.get("machine") else ""
    return (
        f"{event['step']}  done    {event['key'][:12]}  {event.get('seconds', 0):.1f} "
        f"s{peaks(event)}{where}"
    )


def _installed(event: Mapping[str, Any]) -> str:
    ended = f"failed ({event['exit_code']})" if "exit_code" in event else "is ready"
    return f"toolchain `{event['toolchain']}` {ended} after {event['seconds']:.1f} s"


def _built(event: Mapping[str, Any]) -> str:
    if event["ok"]:
        place = f"  {event['package']}" if "package" in event else ""
        return f"{event['build']}  built in {event['seconds']:.1f} s{place}"
    return f"{event['build']}  failed ({event['exit_code']}): {event['message']}{_hint(event)}"


def _hint(event: Mapping[str, Any]) -> str:
    return f"\n  try: {event['hint']}" if event.get("hint") else ""

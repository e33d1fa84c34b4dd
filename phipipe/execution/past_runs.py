"""Runs that were recorded: what their events (see ``events``) tell, for ``phipipe runs``."""

from __future__ import annotations

import contextlib
import difflib
import json
import stat
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from phipipe.errors import Interrupted, SourceError
from phipipe.execution import event_words
from phipipe.execution.event_words import Event
from phipipe.suggestions import near, shorten

FILE = "events.jsonl"
LATEST = "latest"
# what looking things up raises in an event that is none
SENSELESS = (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError)


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
    events: tuple[Event, ...] = field(repr=False)


def read(folder: Path) -> list[Event]:
    """The events in a run's folder; a last line that a killed process has not finished is left out,
    as is damage."""
    path = folder / FILE
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return []
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    events: list[Event] = []
    for written in text.splitlines():
        with contextlib.suppress(*SENSELESS):
            event = json.loads(written)
            if isinstance(event, dict) and event_words.line(event) and _is_run(event):
                events.append(event)
    return events


def _is_run(event: Event) -> bool:
    """Whether all that others look up in ``event`` is there and of its type; ``line`` has looked at
    the rest."""
    if event["event"] in ("step_finished", "step_failed", "build_finished"):
        event_words.row(event)
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


def ids(cache: Path) -> list[str]:
    """What the recorded runs are called, the newest first, without a look at them."""
    home = cache / "runs"
    return sorted((path.name for path in home.iterdir()), reverse=True) if home.is_dir() else []


def find(cache: Path, name: str) -> Run:
    """The run whose ID is, or begins with, ``name``; or the newest one: "latest".

    Raises:
        SourceError: there is none, or several begin so.
    """
    known = runs(cache)
    if name == LATEST and not known:
        raise SourceError("this cache has no record of a run", hint="phipipe run RECIPE")
    named = known[:1] if name == LATEST else [run for run in known if run.id.startswith(name)]
    if len(named) != 1:
        words = f"{len(named)} runs begin with" if named else "there is no run"
        guess = "" if named else near(name, [LATEST])
        raise SourceError(f"{words} `{shorten(name)}`{guess}", hint="phipipe runs ls")
    return named[0]


def of_step(run: Run, step: str | None) -> list[Event]:
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


def _names(event: Event) -> tuple[str, str]:
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


def _alive(first: Event) -> bool:
    """Whether the process that wrote ``run_started`` is still there; its number may have come to
    another."""
    with contextlib.suppress(psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return abs(psutil.Process(first["pid"]).create_time() - float(first["process_started"])) < 1
    return False

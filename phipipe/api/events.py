"""What happens in a run, told to a function of the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from phipipe.api import show
from phipipe.errors import PhipipeError
from phipipe.execution.held import NOT_HELD, Held
from phipipe.execution.results import Result
from phipipe.planning.plan import Plan

Kind = Literal[
    "started", "progress", "finished", "failed", "installing", "installed", "note", "warning"
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened in a run.

    ``str(event)`` is a line for people.

    Attributes:
        kind: ``started``, ``progress``, ``finished`` and ``failed`` are about a step;
            ``installing`` and ``installed`` about a toolchain; ``note`` and ``warning`` about
            neither.
        step: the step's name, after its build's name where several builds need it.
        toolchain: the toolchain's name.
        text: why the step runs, how it ended, or the note itself.
        done: how many units of work are finished.
        total: of how many.
        unit: the units' name, in plural.
        seconds: how long the step or the installation took.
        cached: the step's result was stored already.
        error: why it failed.
    """

    kind: Kind
    step: str = ""
    toolchain: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float | None = None
    cached: bool = False
    error: PhipipeError | None = None

    @property
    def share(self) -> float | None:
        """How much of a step is done, from 0 to 1; None where nobody knows."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else None

    def __str__(self) -> str:
        if self.kind == "progress":
            return f"{self.step}  {self.done} of {self.total} {self.unit}"
        return f"{self.step}  {self.text}" if self.step else self.text


OnProgress = Callable[[Event], object]
"""A function that gets every ``Event`` of a run as it happens."""


class Telling:
    """A listener that tells a function of the caller's.

    What the function raises ends the run, and reaches who started it. Notes may come from any
    thread: what it raises there waits for the run's own.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        """Raise TypeError for what is no function, before anything is done."""
        if on_progress is not None and not callable(on_progress):
            kind = type(on_progress).__name__
            raise TypeError(f"on_progress is of the type {kind}: give a function of one event")
        self._tell = on_progress
        self._own = threading.get_ident()
        self._raised: list[BaseException] = []

    def _event(self, event: Event) -> None:
        if self._raised:
            raise self._raised.pop()
        if self._tell is None:
            return
        if threading.get_ident() == self._own:
            self._tell(event)
            return
        try:
            self._tell(event)
        except BaseException as error:  # noqa: BLE001 (raised again, in the run's own thread)
            self._raised.append(error)

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None:
        self._event(Event(kind="started", step=label, text=f"runs: {why}"))

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        self._event(Event(kind="progress", step=label, done=done, total=total, unit=unit))

    def finished(self, label: str, result: Result) -> None:
        seconds = result.usage.get("seconds")
        text = show.ending(result)
        self._event(
            Event(kind="finished", step=label, text=text, seconds=seconds, cached=result.cached)
        )

    def failed(self, label: str, error: PhipipeError) -> None:
        self._event(Event(kind="failed", step=label, text=f"failed: {error.message}", error=error))

    def installing(self, toolchain: str) -> None:
        text = f"installing toolchain `{toolchain}`"
        self._event(Event(kind="installing", toolchain=toolchain, text=text))

    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None:
        text = show.ready(toolchain, seconds, error)
        self._event(
            Event(kind="installed", toolchain=toolchain, text=text, seconds=seconds, error=error)
        )

    def note(self, line: str) -> None:
        self._event(Event(kind="note", text=line))

    @contextmanager
    def audience(self, plans: Sequence[Plan]) -> Iterator[Telling]:
        """Itself, after saying what is doubtful about ``plans``."""
        for plan in plans:
            for line in show.warning_lines(plan):
                self._event(Event(kind="warning", text=f"{plan.build.name}: {line}"))
        yield self

"""What a run looks like while it goes on: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from phipipe.api.show import ending, heading, hint_lines, ready, warning_lines
from phipipe.errors import PhipipeError
from phipipe.execution.held import NOT_HELD, Held
from phipipe.execution.nodes import labels
from phipipe.execution.pace import Pace
from phipipe.execution.results import Listener, Result
from phipipe.planning.plan import Plan
from phipipe.visible import one_line, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

HEARTBEAT_S = 30.0  # a log without a line for longer looks like a hang


class Silent:
    """A listener that shows nothing."""

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None: ...
    def progress(self, label: str, done: int, total: int, unit: str) -> None: ...
    def finished(self, label: str, result: Result) -> None: ...
    def failed(self, label: str, error: PhipipeError) -> None: ...
    def installing(self, toolchain: str) -> None: ...
    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None: ...
    def note(self, line: str) -> None: ...


class Lines:
    """One plain line per event: for logs, pipes and schedulers."""

    def __init__(self, width: int, stream: TextIO) -> None:
        self._stream, self._width = stream, width
        self._last_line_s: dict[str, float] = {}
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)

    def _line(self, label: str, text: str) -> None:
        self.note(f"{label:{self._width}}  {text}")
        self._last_line_s[label] = time.monotonic()

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None:
        self._line(label, f"runs: {why}")

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        heard = self._paces[label].heard(done, total, unit)
        if time.monotonic() - self._last_line_s.get(label, 0.0) > HEARTBEAT_S:
            self._line(label, f"{done} of {total} {unit}, {heard.words}")

    def finished(self, label: str, result: Result) -> None:
        self._line(label, ending(result))

    def failed(self, label: str, error: PhipipeError) -> None:
        self._line(label, "failed")

    def installing(self, toolchain: str) -> None:
        """Whoever installs says so himself: it may be another process."""

    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None:
        self.note(ready(toolchain, seconds, error))

    def note(self, line: str) -> None:
        self._stream.write(f"  {visible(line)}\n")  # at once: notes come from any thread
        self._stream.flush()


class Live:
    """Every running step with a bar, finished ones above them."""

    def __init__(self, width: int, progress: Progress) -> None:
        self._progress, self._width = progress, width
        self._tasks: dict[str, TaskID] = {}
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)

    def introduce(self, plans: Sequence[Plan]) -> None:
        """Say what is being built."""
        for plan in plans:
            self._progress.console.print(visible(heading(plan)), style="bold", markup=False)
            for line in warning_lines(plan):
                self._progress.console.print(visible(f"  {line}"), style="yellow", markup=False)
        for line in hint_lines(plans):
            self._progress.console.print(visible(f"  {line}"), style="dim", markup=False)

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None:
        self._tasks[label] = self._progress.add_task(
            f"  {label:{self._width}}  {one_line(why)}", total=None, far=""
        )

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        if label in self._tasks:
            far = self._paces[label].heard(done, total, unit).words
            self._progress.update(self._tasks[label], completed=done, total=total, far=far)

    def finished(self, label: str, result: Result) -> None:
        from rich.text import Text

        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))
        style = "dim" if result.cached else "green"
        line = Text.assemble(f"  {label:{self._width}}  ", (visible(ending(result)), style))
        self._progress.console.print(line)

    def failed(self, label: str, error: PhipipeError) -> None:
        from rich.text import Text

        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))
        self._progress.console.print(Text.assemble(f"  {label:{self._width}}  ", ("failed", "red")))

    def installing(self, toolchain: str) -> None:
        self._tasks[toolchain] = self._progress.add_task(
            f"  installing toolchain `{toolchain}`", total=None, far=""
        )

    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None:
        self._progress.remove_task(self._tasks.pop(toolchain))
        self.note(ready(toolchain, seconds, error))

    def note(self, line: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(f"  {visible(line)}", "yellow"))


class Terse(Lines):
    """Plain lines for many builds: nothing is said of what was cached."""

    def finished(self, label: str, result: Result) -> None:
        if not result.cached:
            super().finished(label, result)


@contextmanager
def many(plans: Sequence[Plan], stream: TextIO, *, silent: bool = False) -> Iterator[Listener]:
    """The listener for a batch of builds, after warnings alone."""
    if silent:
        yield Silent()
        return
    width = max((len(plan.build.name) for plan in plans), default=0) + 12  # and the step's name
    for plan in plans:
        for line in warning_lines(plan):
            _write(stream, f"  {plan.build.name}: {line}")
    if not stream.isatty():
        yield Terse(width, stream)
        return
    with _live(width, stream) as live:
        yield live


@contextmanager
def listener(plans: Sequence[Plan], stream: TextIO, *, silent: bool = False) -> Iterator[Listener]:
    """The listener that suits ``stream``, after lines that say what is being built."""
    if silent:
        yield Silent()
        return
    width = max(len(label) for label in labels(plans))
    if not stream.isatty():
        for plan in plans:
            _write(stream, heading(plan))
            for line in warning_lines(plan):
                _write(stream, f"  {line}")
        for line in hint_lines(plans):
            _write(stream, f"  {line}")
        yield Lines(width, stream)
    else:
        with _live(width, stream) as live:
            live.introduce(plans)
            yield live
    _write(stream, "")  # what follows is no progress


@contextmanager
def _live(width: int, stream: TextIO) -> Iterator[Live]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream, highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        TextColumn("{task.fields[far]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Live(width, progress)


def _write(stream: TextIO, line: str) -> None:
    stream.write(f"{visible(line)}\n")
    stream.flush()

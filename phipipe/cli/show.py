"""What a run looks like: live on a terminal, plain lines anywhere else; and its closing table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from phipipe import words
from phipipe.errors import PhipipeError
from phipipe.evaluate.reports import Baseline, Metrics, Speed, Vision
from phipipe.output import documents
from phipipe.package import figures
from phipipe.plan.plan import Plan
from phipipe.run.nodes import labels
from phipipe.run.results import Forecast, Listener, Outcome, Result
from phipipe.visible import one_line, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

HEARTBEAT_S = 30.0  # a log without a line for longer looks like a hang


class Silent:
    """A listener that shows nothing."""

    def started(self, label: str, why: str) -> None: ...
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
        self._said: dict[str, float] = {}

    def _line(self, label: str, text: str) -> None:
        self.note(f"{label:{self._width}}  {text}")
        self._said[label] = time.monotonic()

    def started(self, label: str, why: str) -> None:
        self._line(label, f"runs: {why}")

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        if time.monotonic() - self._said.get(label, 0.0) > HEARTBEAT_S:
            self._line(label, f"{done} of {total} {unit}")

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

    def introduce(self, plans: Sequence[Plan]) -> None:
        """Say what is being built."""
        for plan in plans:
            self._progress.console.print(visible(heading(plan)), style="bold", markup=False)
            for line in _warnings(plan):
                self._progress.console.print(visible(f"  {line}"), style="yellow", markup=False)

    def started(self, label: str, why: str) -> None:
        self._tasks[label] = self._progress.add_task(
            f"  {label:{self._width}}  {one_line(why)}", total=None
        )

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        if label in self._tasks:
            self._progress.update(self._tasks[label], completed=done, total=total)

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
            f"  installing toolchain `{toolchain}`", total=None
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
        for line in _warnings(plan):
            print(visible(f"  {plan.build.name}: {line}"), file=stream, flush=True)
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
            print(visible(heading(plan)), file=stream, flush=True)
            for line in _warnings(plan):
                print(visible(f"  {line}"), file=stream, flush=True)
        yield Lines(width, stream)
    else:
        with _live(width, stream) as live:
            live.introduce(plans)
            yield live
    print(file=stream, flush=True)  # what follows is no progress


@contextmanager
def _live(width: int, stream: TextIO) -> Iterator[Live]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream, highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Live(width, progress)


def _warnings(plan: Plan) -> list[str]:
    return [line for warning in plan.warnings for line in warning.lines]


def heading(plan: Plan) -> str:
    """``quickstart: tiny-phi3 → int4 for CPU (x86-64), onnxruntime``"""
    recipe = plan.build.recipe
    return (
        f"{plan.build.name}: {source_words(plan)} → {recipe.precision} for "
        f"{plan.device.title}, {recipe.backend}"
    )


def source_words(plan: Plan) -> str:
    """What the original is called."""
    source = plan.build.recipe.source
    return source.builtin or source.repo or Path(str(source.path)).name


def ready(toolchain: str, seconds: float, error: PhipipeError | None) -> str:
    """How an installation ended, in one line."""
    return (
        f"toolchain `{toolchain}` "
        f"{'is ready' if error is None else 'could not be installed'} ({seconds:.1f} s)"
    )


def ending(result: Result) -> str:
    """How a step ended, in one line."""
    if result.cached:
        return f"cached  {result.key[:12]}{'  from the shared store' if result.shared else ''}"
    usage = result.usage
    where = f", on {result.machine}" if result.machine else ""
    return (
        f"done    {result.key[:12]}  {usage.get('seconds', 0):.1f} s{figures.peaks(usage)}{where}"
    )


def outcome(done: Outcome) -> str:
    """The closing words of one build: table, place, next commands. Empty for a failed one."""
    metrics, speed = done.load("evaluate", Metrics), done.load("measure", Speed)
    if done.error or not (metrics or speed):
        return ""
    rows = figures.fidelity_table(
        metrics or Metrics(metrics={}),  # a device that gives no logits
        speed,
        done.load("baseline", Baseline),
        done.load("vision-evaluate", Vision),
    )
    lines = [heading(done.plan), figures.plain_table(rows)]
    if speed and done.plan.on_target != "true" and done.plan.device:
        lines.append(
            f"\nSpeed and memory are this machine's, not those of {done.plan.device.title}; "
            f"fidelity holds there."
        )
    if done.all_cached:
        lines.append(f"\neverything was cached, nothing had to be done ({done.seconds:.2f} s)")
    if done.package is not None:
        lines.append(f"\npackage  {done.package}")
        lines.append(f"chat     phipipe chat {done.package}")
        lines.append(f"check    phipipe verify {done.package}")
    return "\n".join(lines)


def outcome_json(done: Outcome) -> documents.Built:
    """The same for machines."""
    made, error = done.plan.build.recipe, done.error
    metrics, speed = done.load("evaluate", Metrics), done.load("measure", Speed)
    return documents.Built(
        name=done.plan.build.name,
        device=done.plan.device.name,
        unit=done.plan.api,
        backend=made.backend,
        precision=made.precision,
        ok=error is None,
        package=None if done.package is None else str(done.package),
        seconds=round(done.seconds, 3),
        on_target=done.plan.on_target,
        warnings=_advice(done.plan),
        evaluation=None if metrics is None else metrics.as_json(),
        speed=None if speed is None else speed.as_json(),
        steps=[_step(name, result) for name, result in done.results.items()],
        error=None if error is None else documents.error_of(error),
    )


def _advice(plan: Plan) -> list[documents.Warned]:
    return [
        documents.Warned(rule=a.rule, level=a.level, message=a.message, hint=a.hint)
        for a in plan.warnings
    ]


def _step(name: str, result: Result) -> documents.DoneStep:
    seconds, rss, anon = (
        result.usage.get(n) for n in ("seconds", "peak_rss_bytes", "peak_anon_bytes")
    )
    return documents.DoneStep(
        name=name,
        key=result.key,
        digest=result.stored.digest,
        cached=result.cached,
        shared=result.shared,
        bytes=result.stored.size_bytes,
        seconds=seconds,
        peak_rss_bytes=None if rss is None else int(rss),
        peak_anon_bytes=None if anon is None else int(anon),
        machine=result.machine,
    )


def plan(planned: Plan, forecast: Sequence[Forecast]) -> str:
    """A table of steps: cached or not, why, and what they need."""
    rows = [("step", "state", "disk", "anonymous", "why")]
    for item in forecast:
        step = item.step
        state = f"cached {str(item.key)[:12]}" if item.cached else "will run"
        rows.append(
            (step.name, state, _size(step.output_bytes), _size(step.memory_bytes), item.why)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [heading(planned)]
    lines += [f"  {line}" for line in _warnings(planned)]
    lines += [f"  fix-up {name}: {fix['reason']}" for name, fix in planned.fixups.items()]
    lines += [
        "  "
        + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    if planned.fit is not None:
        has = planned.fit.memory_gib
        room = f", of {has:g} GiB" if has else ""
        lines.append(f"  on the device about {planned.fit.words()}{room}")
    todo = [item.step for item in forecast if not item.cached]
    peak = max((step.memory_bytes for step in todo), default=0)
    lines.append(
        f"  {len(todo)} of {figures.counted(len(forecast), 'step')} will run"
        + (f", writing about {words.size(sum(step.output_bytes for step in todo))}" if todo else "")
        + (f"; peak about {words.size(peak)} anonymous" if peak else "")
    )
    return "\n".join(lines)


def plan_json(
    planned: Plan, forecast: Sequence[Forecast], refusal: PhipipeError | None
) -> documents.Planned:
    """The same for machines; ``refusal``: why `run` would refuse."""
    made, fit = planned.build.recipe, planned.fit
    return documents.Planned(
        name=planned.build.name,
        device=planned.device.name,
        unit=planned.api,
        backend=made.backend,
        precision=made.precision,
        source=source_words(planned),
        on_target=planned.on_target,
        memory_bytes=planned.memory_bytes,
        fit=None if fit is None else documents.Fit(**fit.as_json()),
        warnings=_advice(planned),
        fixups={
            name: documents.Fixup(rule=fix["rule"], reason=fix["reason"], patch=fix["patch"])
            for name, fix in planned.fixups.items()
        },
        steps=[
            documents.PlannedStep(
                name=f.step.name,
                runs=f.step.runs,
                toolchain=f.step.toolchain,
                key=f.key,
                cached=f.cached,
                why=f.why,
                output_bytes=f.step.output_bytes,
                memory_bytes=f.step.memory_bytes,
            )
            for f in forecast
        ],
        refusal=None if refusal is None else documents.error_of(refusal),
    )


def _size(size_bytes: int) -> str:
    return words.size(size_bytes) if size_bytes else "-"

"""What becomes of steps and builds, and who hears of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from phipipe.errors import PhipipeError
from phipipe.evaluate import reports, run_reports
from phipipe.evaluate.reports import Metrics, R
from phipipe.evaluate.run_reports import AsRun
from phipipe.execution.held import NOT_HELD, Held
from phipipe.planning.plan import Plan
from phipipe.processes.company import Seat
from phipipe.progress import OnProgress
from phipipe.steps import Json, Step
from phipipe.store.records import Stored


class Listener(Protocol):
    """Who shows what happens. ``label`` names the step, and the build where it belongs to one of
    several.

    Every method but ``note`` is called from the run's own thread only. ``held`` says what a step
    that starts has waited for.
    """

    def started(self, label: str, why: str, held: Held = NOT_HELD) -> None: ...
    def progress(self, label: str, done: int, total: int, unit: str) -> None: ...
    def finished(self, label: str, result: Result) -> None: ...
    def failed(self, label: str, error: PhipipeError) -> None: ...
    def installing(self, toolchain: str) -> None: ...
    def installed(self, toolchain: str, seconds: float, error: PhipipeError | None) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one step. ``usage`` has what it took, as ``step_finished`` in ``events`` lists
    it; empty for a cached one."""

    step: Step
    key: str
    stored: Stored
    cached: bool
    shared: bool = False  # cached on another machine: it came from the remote store
    usage: Mapping[str, Json] = field(default_factory=dict)
    machine: str | None = None  # who did it, if not this one


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What ``plan`` says of one step. ``key`` is None where an input is still to be made."""

    step: Step
    key: str | None
    cached: bool
    why: str
    stored: Stored | None = None  # where it is cached


@dataclass(kw_only=True)
class Outcome:
    """How one build ended. ``package`` is None where none was asked for, or where it failed."""

    plan: Plan
    results: dict[str, Result] = field(default_factory=dict)
    package: Path | None = None
    error: PhipipeError | None = None
    seconds: float = 0.0

    @property
    def all_cached(self) -> bool:
        return self.error is None and all(result.cached for result in self.results.values())

    @property
    def fidelity(self) -> Metrics | None:
        """How far the artifact is from the original, also as it runs; None where that was not
        scored."""
        metrics = self.load("evaluate", Metrics)
        if metrics is None:
            return None
        return run_reports.joined(metrics, self.plan.knob, self.load(run_reports.STEP, AsRun))

    def load(self, step: str, kind: type[R]) -> R | None:
        """The report that ``step`` wrote, or None if that step did not come about."""
        result = self.results.get(step)
        return reports.read(kind, result.stored.path) if result else None


@dataclass(kw_only=True)
class Waiting:
    """A step whose result is not stored: all that is needed to make it."""

    step: Step
    key: str
    record: dict[str, Json]
    why: str
    seat: Seat | None = None  # among steps that share the layers of a checkpoint
    takes_over: bool = False  # set where nobody else reads the input that its step may take over


Results = Mapping[str, Result]  # input name → what fills it
NEEDED = "was not kept, and is needed again"


def with_needed(forecast: Sequence[Forecast]) -> list[Forecast]:
    """``forecast``, in which results whose files were let go will be made again where a step that
    will run reads them."""
    needed: set[str] = set()
    found: list[Forecast] = []
    for item in reversed(forecast):
        gone = item.stored is not None and item.stored.left is not None and not item.stored.place
        again = gone and item.cached and item.step.name in needed
        found.append(replace(item, cached=False, why=NEEDED, stored=None) if again else item)
        if not found[-1].cached:
            needed |= {*item.step.needs.values()}
    return found[::-1]


class Workplace(Protocol):
    """Where a run's steps are done: a ``Bench`` on this machine, or a cluster.

    ``lacks``, ``prepare`` and ``make`` may be called from several threads, everything else from
    one.
    """

    def here(self, step: Step) -> bool:
        """Whether ``step`` is done on this machine."""
        ...

    def lacks(self, step: Step) -> str | None:
        """The toolchain that must be installed here (``prepare``) before ``look`` can tell the key
        of ``step``."""
        ...

    def prepare(self, name: str) -> None:
        """Have toolchain ``name`` installed."""
        ...

    def look(self, step: Step, inputs: Results, before: Results) -> Result | Waiting:
        """The stored result of ``step``, or what it takes to make it. ``before`` feeds a step's
        provenance."""
        ...

    def make(self, waiting: Waiting, inputs: Results, on_progress: OnProgress) -> Result:
        """Do the step, unless somebody has meanwhile."""
        ...

    def dismiss(self, keep: set[str]) -> None:
        """No step of other toolchains than ``keep`` will come for now."""
        ...

    def stop(self, force: bool = False) -> None:
        """Make every running step end soon with ``Interrupted``; with ``force`` at once. No new one
        starts."""
        ...

    def close(self) -> None:
        """No more steps will come."""
        ...

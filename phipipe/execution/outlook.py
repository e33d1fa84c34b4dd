"""What runs of many plans would do now, and what it would cost: nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phipipe.execution import disk
from phipipe.execution.bench import Bench
from phipipe.execution.disk import Disk
from phipipe.execution.estimates import Estimate
from phipipe.execution.keeping import keeps_all
from phipipe.execution.nodes import graph
from phipipe.execution.results import Forecast
from phipipe.planning.plan import Plan
from phipipe.steps import Step


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some steps would take. ``seconds`` counts them one after another; None where no step is
    known. Of these, ``assumed`` steps go by their own estimates, the others by ``earlier`` results.
    ``unknown`` names the steps that nothing tells of."""

    steps: int
    disk: Disk
    memory_bytes: int
    seconds: float | None
    earlier: int
    assumed: int
    unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a run of ``plan`` would do: each step, and how long those take that would be done."""

    plan: Plan
    forecast: tuple[Forecast, ...]
    estimates: Mapping[str, Estimate]
    keep_all: bool = True

    @property
    def todo(self) -> list[Step]:
        """The steps that would be done."""
        return [item.step for item in self.forecast if not item.cached]

    @property
    def cost(self) -> Cost:
        todo = [(step, self.estimates.get(step.name)) for step in self.todo]
        return _cost(todo, disk.foreseen(disk.uses_of(self.todo, self.keep_all)))


def foreseen(plans: Sequence[Plan], bench: Bench) -> list[Outlook]:
    """What a run of each of ``plans`` would do."""
    outlooks = []
    for plan in plans:
        forecast = tuple(bench.foresee(plan))
        estimates = bench.estimates(forecast)
        keep_all = keeps_all(plan, bench.settings)
        outlooks.append(
            Outlook(plan=plan, forecast=forecast, estimates=estimates, keep_all=keep_all)
        )
    return outlooks


def total(outlooks: Sequence[Outlook]) -> Cost:
    """What all of them cost in one run; a step that several share counts once."""
    nodes, names = graph([one.plan for one in outlooks])
    once: dict[str, tuple[Step, Estimate | None]] = {}
    for one, own in zip(outlooks, names, strict=True):
        for step in one.todo:
            once.setdefault(own[step.name], (step, one.estimates.get(step.name)))
    uses = disk.uses_among(nodes, once, [one.keep_all for one in outlooks])
    return _cost(list(once.values()), disk.foreseen(uses))


def _cost(todo: Sequence[tuple[Step, Estimate | None]], room: Disk) -> Cost:
    known = [estimate for _, estimate in todo if estimate]
    told = {_kind(step): estimate.earlier for step, estimate in todo if estimate}
    return Cost(
        steps=len(todo),
        disk=room,
        memory_bytes=max((step.memory_bytes for step, _ in todo), default=0),
        seconds=sum(estimate.seconds for estimate in known) if known or not todo else None,
        earlier=sum(told.values()),
        assumed=sum(not estimate.earlier for estimate in known),
        unknown=tuple(dict.fromkeys(step.name for step, estimate in todo if not estimate)),
    )


def _kind(step: Step) -> tuple[str, ...]:
    """Steps of one kind rest on the same earlier results."""
    return step.name, step.runs, str(step.params.get("backend"))

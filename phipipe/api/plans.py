"""What a run would do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from phipipe.api import building, pages, show, workplace
from phipipe.api.recipes import Recipe, Sets
from phipipe.api.runs import PACKAGES
from phipipe.api.workplace import Names, Note, UserPath, Workplace
from phipipe.errors import PhipipeError
from phipipe.execution import preflight
from phipipe.execution.bench import Bench
from phipipe.execution.results import Forecast
from phipipe.output import documents
from phipipe.planning import plan as planning
from phipipe.steps import Json
from phipipe.visible import visible
from phipipe.words import counted

Foreseen = tuple[planning.Plan, Sequence[Forecast]]


class PlannedBuild:
    """What a run would do for one build.

    Attributes:
        name: the build's name.
        steps: the steps in an order that works: ``step.name``, ``cached`` and ``why``.
    """

    def __init__(self, plan: planning.Plan, forecast: Sequence[Forecast]) -> None:
        self.plan, self.steps = plan, tuple(forecast)
        self.name = plan.build.name

    @property
    def todo(self) -> tuple[Forecast, ...]:
        """The steps that will run."""
        return tuple(step for step in self.steps if not step.cached)

    @cached_property
    def warnings(self) -> list[str]:
        """What is doubtful about the build."""
        return [visible(line) for line in show.warning_lines(self.plan)]

    def __repr__(self) -> str:
        will = f"{len(self.todo)} of {counted(len(self.steps), 'step')} will run"
        return f"<PlannedBuild {self.name}: {will}>"

    def __str__(self) -> str:
        return visible(show.describe_plan(self.plan, self.steps))

    def _repr_html_(self) -> str:
        rows = [
            (s.step.name, "cached" if s.cached else "will run", s.step.toolchain or "", s.why)
            for s in self.steps
        ]
        head = pages.paragraph(show.heading(self.plan))
        warned = "".join(map(pages.paragraph, self.warnings))
        return head + warned + pages.table(("step", "state", "toolchain", "why"), rows)


class Plan:
    """What a run would do, build by build. ``print(plan)`` shows it as ``phipipe plan`` does.

    Attributes:
        builds: the builds, in the order of the recipe.
        refusal: why ``run`` would refuse on this machine, for want of memory or disk; None where
            it would not.
        doubt: the same, also where the user wants it tried (``PHIPIPE_PREFLIGHT=off``).
    """

    def __init__(
        self, foreseen: Sequence[Foreseen], doubt: PhipipeError | None, strict: bool
    ) -> None:
        self.builds = tuple(PlannedBuild(*one) for one in foreseen)
        self.doubt, self.refusal = doubt, doubt if strict else None

    @property
    def todo(self) -> int:
        """How many steps will run; those that builds share count for each of them."""
        return sum(len(build.todo) for build in self.builds)

    def to_dict(self) -> list[Json]:
        """The plan as ``phipipe plan --json`` prints it."""
        return [
            documents.plain(show.plan_json(build.plan, build.steps, self.refusal))
            for build in self.builds
        ]

    def __repr__(self) -> str:
        return (
            f"<Plan {', '.join(repr(build)[len('<PlannedBuild ') : -1] for build in self.builds)}>"
        )

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.builds), *self._refused()])

    def _repr_html_(self) -> str:
        builds = "".join(build._repr_html_() for build in self.builds)
        return builds + "".join(map(pages.paragraph, self._refused()))

    def _refused(self) -> list[str]:
        return [f"run would refuse: {visible(self.refusal.message)}"] if self.refusal else []


def plan(
    recipe: Recipe | UserPath, *, sets: Sets = (), only: Names = (), on: str | None = None
) -> Plan:
    """Find out what a run would do; nothing is changed.

    Args:
        recipe: a recipe, or the path of its file.
        sets: values that replace those of the recipe's file, for all variants.
        only: names of the variants wanted; all of them without it.
        on: the address of a Dask scheduler, whose machines the plan then counts with.

    Raises:
        RecipeError: the recipe is wrong.
        TargetError: the device cannot do it.
        SourceError: the model or a text cannot be had.
    """
    place = workplace.of_user(_silent)
    plans = building.planned(recipe, _silent, sets=sets, only=only, on=on)
    return foresee(plans, place, _silent)


def foresee(plans: Sequence[planning.Plan], place: Workplace, note: Note) -> Plan:
    """What doing ``plans`` would mean: what is cached, and whether this machine can."""
    bench = Bench(place.store, place.settings, note)
    foreseen = [(one, bench.foresee(one)) for one in plans]
    doubt = preflight.refusal(plans, place.store, place.settings, Path(PACKAGES))
    return Plan(foreseen, doubt, place.settings.preflight)


def _silent(line: str) -> None:
    """Nobody listens to notes of a plan."""

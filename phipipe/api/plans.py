"""What a run would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from phipipe.api import building, pages, plan_words, show, workplace
from phipipe.api.recipes import Recipe, Sets
from phipipe.api.runs import PACKAGES
from phipipe.api.workplace import Names, Note, UserPath, Workplace
from phipipe.errors import PhipipeError
from phipipe.execution import drawing, outlook, preflight
from phipipe.execution.bench import Bench
from phipipe.execution.outlook import Outlook
from phipipe.execution.results import Forecast
from phipipe.output import documents
from phipipe.planning import plan as planning
from phipipe.signing import recipe_key
from phipipe.steps import Json
from phipipe.visible import visible
from phipipe.words import counted

if TYPE_CHECKING:
    from phipipe.cluster.places import Workers


Drawing = Literal["mermaid", "dot"]


class PlannedBuild:
    """What a run would do for one build.

    Attributes:
        name: the build's name.
        steps: the steps in an order that works: each has ``step``, ``cached`` and ``why``.
        seconds: how long the steps that will run take, by earlier runs and measurements; None where
            nobody knows.
    """

    def __init__(self, one: Outlook) -> None:
        self.outlook, self.plan = one, one.plan
        self.steps: tuple[Forecast, ...] = one.forecast
        self.name, self.seconds = one.plan.build.name, one.cost.seconds

    @property
    def todo(self) -> tuple[Forecast, ...]:
        """The steps that will run."""
        return tuple(step for step in self.steps if not step.cached)

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the build."""
        return [visible(line) for line in show.warning_lines(self.plan)]

    @property
    def summary(self) -> str:
        """The build's name, and how many of its steps will run."""
        return f"{self.name}: {len(self.todo)} of {counted(len(self.steps), 'step')} will run"

    def __repr__(self) -> str:
        return f"<PlannedBuild {self.summary}>"

    def __str__(self) -> str:
        return visible(plan_words.describe(self.outlook, pages.aligned))

    def _repr_html_(self) -> str:
        head = pages.paragraph(show.heading(self.plan))
        warned = "".join(map(pages.paragraph, self.warnings))
        cost = pages.paragraph(self.summary + plan_words.cost_words(self.outlook.cost))
        steps = pages.table_of(plan_words.rows(self.outlook, None))
        return head + warned + steps + pages.table_of(plan_words.matrix_rows(self.plan)) + cost


class Plan:
    """What a run would do, build by build. ``print(plan)`` shows it as ``phipipe plan`` does.

    ``plan["name"]`` is a build, ``plan[0]`` the first one.

    Attributes:
        builds: the builds, in the order of the recipe.
        refusal: why ``run`` would refuse on this machine, for want of memory or disk; None where
            it would not.
        doubt: the same, also where the user wants it tried (``PHIPIPE_PREFLIGHT=off``).
    """

    def __init__(
        self,
        outlooks: Sequence[Outlook],
        doubt: PhipipeError | None,
        *,
        refused: bool,
        workers: Workers | None = None,
    ) -> None:
        """Of ``outlooks``; ``refused``: whether ``doubt`` is a reason to refuse a run."""
        self.outlooks, self.workers = tuple(outlooks), workers
        self.builds = tuple(map(PlannedBuild, outlooks))
        self.doubt, self.refusal = doubt, doubt if refused else None

    def __len__(self) -> int:
        return len(self.builds)

    def __iter__(self) -> Iterator[PlannedBuild]:
        return iter(self.builds)

    def __getitem__(self, which: int | str) -> PlannedBuild:
        if isinstance(which, str):
            return workplace.named(which, {build.name: build for build in self.builds})
        return self.builds[which]

    @property
    def todo(self) -> int:
        """How many steps will run; one that builds share counts once."""
        return outlook.total(self.outlooks).steps

    @property
    def seconds(self) -> float | None:
        """How long these take, one after another, by earlier runs and measurements; None where
        nobody knows."""
        return outlook.total(self.outlooks).seconds

    def graph(self, kind: Drawing = "mermaid") -> str:
        """The steps as a graph, as ``phipipe graph`` prints it: cached steps have a colour of their
        own, and several builds share boxes.

        Args:
            kind: "mermaid", or "dot" for Graphviz.
        """
        draw = drawing.mermaid if kind == "mermaid" else drawing.dot
        return draw(self.outlooks, self.outlooks[0].plan.build.recipe.name)

    def to_dict(self) -> list[Json]:
        """The plan as ``phipipe plan --json`` prints it."""
        every = (plan_words.plan_json(o, self.refusal, self.workers) for o in self.outlooks)
        return [documents.plain(one) for one in every]

    def __repr__(self) -> str:
        return f"<Plan {'; '.join(build.summary for build in self.builds)}>"

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
    place = workplace.of_user(workplace.silent)
    plans = building.planned(recipe, workplace.silent, sets=sets, only=only, on=on)
    return foresee(plans, place, workplace.silent, on=on)


def foresee(
    plans: Sequence[planning.Plan], place: Workplace, note: Note, *, on: str | None = None
) -> Plan:
    """What doing ``plans`` would mean: what is cached, and whether this machine can do it, or
    those of the scheduler ``on``."""
    outlooks = outlook.foreseen(plans, Bench(place.store, place.settings, note))
    if unsigned := recipe_key.missing([plan.build for plan in plans]):
        return Plan(outlooks, unsigned, refused=True)
    if on is None:
        doubt = preflight.refusal(plans, place.store, place.settings, Path(PACKAGES))
        return Plan(outlooks, doubt, refused=place.settings.preflight)
    from phipipe.cluster import places

    workers = places.workers(on)
    todo = [step for one in outlooks for step in one.todo]
    doubt = workers.refusal(todo, place.settings)
    return Plan(outlooks, doubt, refused=True, workers=workers)

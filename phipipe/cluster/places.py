"""Which machines could do each step of a plan, asked of the scheduler before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from phipipe.cluster import client, dask
from phipipe.cluster.placement import fitting, needs
from phipipe.cluster.scheduler import Scheduler
from phipipe.errors import PhipipeError, RecipeError, TargetError
from phipipe.settings import Settings
from phipipe.steps import Step

HERE = "this machine"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Who could do a step: ``machines`` by name; none where ``refusal`` says why."""

    machines: tuple[str, ...]
    refusal: TargetError | None = None


@dataclass(frozen=True)
class Workers:
    """The workers of the scheduler at ``where``, as they are now: name → what each advertises."""

    where: str
    offers: Mapping[str, Mapping[str, float]]

    def place(self, step: Step) -> Place:
        """Who could do ``step``."""
        if client.is_here(step):
            return Place(machines=(HERE,))
        try:
            wanted = needs(step, list(self.offers.values()), self.where)
        except TargetError as error:
            return Place(machines=(), refusal=error)
        able = [name for name, own in self.offers.items() if fitting(wanted, [own])]
        return Place(machines=tuple(able))

    def refusal(self, steps: Iterable[Step], settings: Settings) -> PhipipeError | None:
        """Why a run would refuse ``steps``: nothing is shared, or one can be done nowhere."""
        if not settings.remote:
            return RecipeError(client.UNSHARED, hint=client.SHARE)
        return next((refusal for step in steps if (refusal := self.place(step).refusal)), None)


def workers(url: str) -> Workers:
    """The workers of the scheduler at ``url``.

    Raises:
        RecipeError, ToolchainError: as ``Scheduler``.
    """
    where = dask.address(url)
    scheduler = Scheduler(where)
    try:
        return Workers(where, scheduler.workers())
    finally:
        scheduler.close()

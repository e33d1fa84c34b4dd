"""Which results stay when a run has no more need of them: see ``Step.keep``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from phipipe.execution.nodes import Node
from phipipe.execution.results import Result
from phipipe.execution.todo import Todo
from phipipe.planning.plan import Plan
from phipipe.recipe.caching import Caching
from phipipe.settings import Settings
from phipipe.steps import Keep
from phipipe.store.records import Stored
from phipipe.store.store import Store


def goes(keep: Keep, keep_all: bool) -> bool:
    """Whether a result goes when all that read it are done."""
    return keep == "proof" or (keep == "material" and not keep_all)


def keeps_all(plan: Plan, settings: Settings) -> bool:
    """Whether all that a run of ``plan`` makes stays: as its recipe says, or the ``settings``."""
    said = plan.build.recipe.cache.keep
    return settings.keep_all if said is None else said == "all"


def keeping_all(plan: Plan) -> Plan:
    """``plan``, of whose run all stays, whatever its recipe says: more runs read it."""
    recipe = plan.build.recipe.model_copy(update={"cache": Caching(keep="all")})
    return replace(plan, build=replace(plan.build, recipe=recipe))


def any_keeps(node: Node, keep_all: Sequence[bool]) -> bool:
    """Whether one of the builds that ``node`` belongs to keeps all; ``keep_all`` says of each."""
    return any(keep_all[build] for build in node.builds)


@dataclass(frozen=True)
class Keeping:
    """Lets results of a run go from ``store`` as soon as nobody in it reads them any more.
    ``keep_all`` says of each build whether all of it stays. Used from the run's own thread
    alone."""

    store: Store
    keep_all: Sequence[bool]

    def stays(self, node: Node) -> bool:
        """Whether ``node`` belongs to a build that keeps all."""
        return any_keeps(node, self.keep_all)

    def gives(self, node: Node, todo: Todo) -> bool:
        """Whether ``node`` alone reads what it may take over."""
        name = node.step.takes_over
        return name is not None and todo.readers(node.needs[name]) == [node]

    def after(self, node: Node, todo: Todo) -> None:
        """``node`` has its result: let go what nobody reads now."""
        for identity in {node.identity, *node.needs.values()}:
            read = todo.nodes[identity]
            if (
                read.result is not None
                and goes(read.step.keep, self.stays(read))
                and read.result.stored.is_whole
                and not todo.readers(identity)
                and not todo.reads(read.result.stored.digest)
            ):
                self.store.let_go(read.result.stored)

    def results(self, plan: Plan, names: Mapping[str, str], todo: Todo) -> dict[str, Result]:
        """What the steps of ``plan``, whose nodes ``names`` tells, have come to, with what is there
        of it at the end of the run."""
        ends = {step.name: todo.nodes[names[step.name]].result for step in plan.steps}
        return {
            step.name: replace(result, step=step, stored=self._as_it_is(result))
            for step in plan.steps
            if (result := ends[step.name]) is not None
        }

    def _as_it_is(self, result: Result) -> Stored:
        stored = result.stored
        if stored.path.is_dir() or stored.place is not None:
            return stored
        return self.store.peek(result.key) or stored

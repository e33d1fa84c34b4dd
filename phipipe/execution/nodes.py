"""The steps of one or many plans as one graph: what builds share is one node, known by what it does
and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from phipipe.execution.results import Result, Waiting
from phipipe.planning.plan import Plan
from phipipe.steps import Step
from phipipe.store import keys


@dataclass(kw_only=True)
class Node:
    """A step of one build or of several. ``needs`` and ``after`` hold other nodes' identities, and
    nodes may share them.

    From ``waiting`` on, what a run finds out about it.
    """

    step: Step
    identity: str
    needs: Mapping[str, str]
    after: Set[str]
    builds: set[int]
    label: str = ""
    before: Mapping[str, str] = field(default_factory=dict)  # step name → identity, for provenance
    waiting: Waiting | None = None
    result: Result | None = None
    running: bool = False
    damaged: int = 0


class Graph(NamedTuple):
    """Every distinct step of some plans by identity, in an order that works; and per plan, step
    name → identity."""

    nodes: Mapping[str, Node]
    names: Sequence[Mapping[str, str]]

    def copy(self) -> dict[str, Node]:
        """The nodes for a run, which writes into them."""
        return {identity: replace(node) for identity, node in self.nodes.items()}


_last: tuple[tuple[Plan, ...], Graph] = ((), Graph({}, []))


def graph(plans: Sequence[Plan]) -> Graph:
    """The graph of ``plans``, to be looked at only. Several parts of a run ask for it in turn; it
    is built once."""
    global _last
    known, latest = _last
    if len(known) != len(plans) or any(a is not b for a, b in zip(known, plans, strict=True)):
        latest = _graph(plans)
        _last = (tuple(plans), latest)
    return latest


def _graph(plans: Sequence[Plan]) -> Graph:
    drafts = _Drafts()
    nodes: dict[str, Node] = {}
    names: list[dict[str, str]] = []
    for i, plan in enumerate(plans):
        own: dict[str, str] = {}
        names.append(own)
        for step in plan.steps:
            new = drafts.node(step, own)
            node = nodes.setdefault(new.identity, new)
            own[step.name] = node.identity
            node.builds.add(i)
    for node in nodes.values():
        node.label = _label(node, plans)
    return Graph(nodes, names)


def _label(node: Node, plans: Sequence[Plan]) -> str:
    """The step's name, after the build that it belongs to, or the backend where several of its
    builds share it."""
    if len(node.builds) == len(plans):
        return node.step.name
    if len(node.builds) == 1:
        return f"{plans[min(node.builds)].build.name}: {node.step.name}"
    backends = {plans[build].build.recipe.backend for build in node.builds}
    return f"{backends.pop()}: {node.step.name}" if len(backends) == 1 else node.step.name


def labels(plans: Sequence[Plan]) -> list[str]:
    """What listeners will hear the steps called."""
    return [node.label for node in graph(plans)[0].values()]


class _Links(NamedTuple):
    """Other nodes' identities: what a step reads, follows, and knows of."""

    needs: Mapping[str, str]
    after: Set[str]
    before: Mapping[str, str]


class _Drafts:
    """Nodes of the steps of some plans. Plans of one kind share steps (``planning.alike``), and
    what they need: it is looked at once."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], Node] = {}
        self._links: dict[tuple[object, ...], _Links] = {}

    def node(self, step: Step, own: Mapping[str, str]) -> Node:
        """``own`` has the identities of the plan's earlier steps by name."""
        if step.provenance:
            at = (id(step.needs), *own, *own.values())
            links = self._links.get(at) or self._links.setdefault(at, _last_links(step, own))
            return _node(step, links)
        at = (id(step), *(own[name] for name in (*step.needs.values(), *step.after)))
        return self._nodes.get(at) or self._nodes.setdefault(at, _node(step, _links(step, own)))


def _links(step: Step, own: Mapping[str, str]) -> _Links:
    needs = {name: own[needed] for name, needed in step.needs.items()}
    return _Links(needs, {own[name] for name in step.after}, {})


def _last_links(step: Step, own: Mapping[str, str]) -> _Links:
    """Of a step that tells where everything comes from."""
    return _links(step, own)._replace(after=frozenset(own.values()), before=dict(own))


def _node(step: Step, links: _Links) -> Node:
    identifying = {
        "runs": step.runs,
        "version": step.version,
        "params": dict(step.params),
        "outside": {name: [str(o.folder), *o.files] for name, o in step.outside.items()},
        "toolchain": step.toolchain,
        "measurement": step.measurement,
        "machine": list(step.machine),
        "needs": links.needs,
        "before": links.before,
    }
    return Node(
        step=step,
        identity=keys.key_of(identifying),
        needs=links.needs,
        after=links.after,
        builds=set(),
        before=links.before,
    )

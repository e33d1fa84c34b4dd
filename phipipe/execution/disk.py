"""What steps write, and how much of it lies on the disk at once, told before the first of them
starts.

A tree that is borrowed or taken over is not written. What nobody reads any more goes at once, where
it does not stay (``keeping.goes``). A package is copied to its folder; without ``keep_all`` it is
moved there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from phipipe.execution.keeping import any_keeps, goes
from phipipe.execution.nodes import Node
from phipipe.steps import Step
from phipipe.store import downloads

PACKAGE = "package"  # name of the step whose output gets a folder


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes: ``written`` in all; ``peak``, the most that is there at once; ``kept`` in the cache
    afterwards, and ``delivered`` to the packages' folders, both of which ``peak`` counts."""

    written: int
    peak: int
    kept: int
    delivered: int


@dataclass(frozen=True, kw_only=True)
class Use:
    """A step that will run, by its ``identity``; ``needs`` holds other steps' identities.
    ``keep_all``: a build that it belongs to keeps all it makes."""

    identity: str
    step: Step
    needs: Mapping[str, str]  # input name → identity
    keep_all: bool

    @property
    def written_bytes(self) -> int:
        """What it writes by itself, and in its package's folder."""
        return written_bytes(self.step, self.keep_all)


def uses_of(steps: Sequence[Step], keep_all: bool) -> list[Use]:
    """The ``steps`` of one build, known by their names."""
    return [
        Use(identity=step.name, step=step, needs=step.needs, keep_all=keep_all) for step in steps
    ]


def uses_among(
    nodes: Mapping[str, Node], wanted: Container[str], keep_all: Sequence[bool]
) -> list[Use]:
    """Those of ``nodes`` that are ``wanted``, in their order; ``keep_all`` says of each build
    whether all of it stays."""
    return [
        Use(
            identity=identity,
            step=node.step,
            needs=node.needs,
            keep_all=any_keeps(node, keep_all),
        )
        for identity, node in nodes.items()
        if identity in wanted
    ]


def written_bytes(step: Step, keep_all: bool) -> int:
    """What ``step`` writes by itself, and in its package's folder."""
    copied = step.output_bytes if step.name == PACKAGE and keep_all else 0
    return step.output_bytes - step.taken_bytes + copied


def foreseen(uses: Sequence[Use]) -> Disk:
    """What the steps of ``uses`` take, one after another."""
    gone = _gone(uses)
    there: dict[str, int] = {}
    written = lying = peak = delivered = 0
    for at, use in enumerate(uses):
        step = use.step
        own = max(0, step.output_bytes - step.taken_bytes - _partial(step))
        written, lying = written + own, lying + own
        taken = there.pop(use.needs[step.takes_over], 0) if step.takes_over is not None else 0
        there[use.identity] = own + taken
        if step.name == PACKAGE:
            delivered += step.output_bytes
            if use.keep_all:
                written += step.output_bytes
            else:
                lying -= there.pop(use.identity)
        peak = max(peak, lying + delivered)
        lying -= sum(there.pop(identity, 0) for identity in gone[at])
    return Disk(written=written, peak=peak, kept=lying, delivered=delivered)


def _gone(uses: Sequence[Use]) -> Mapping[int, list[str]]:
    """Place among ``uses`` → whose results go once that step is done."""
    last = {need: at for at, use in enumerate(uses) for need in use.needs.values()}
    gone: defaultdict[int, list[str]] = defaultdict(list)
    for at, use in enumerate(uses):
        if goes(use.step.keep, use.keep_all):
            gone[max(at, last.get(use.identity, at))].append(use.identity)
    return gone


def _partial(step: Step) -> int:
    """Bytes of the step's output that an earlier run left for it to go on with."""
    return 0 if step.folder is None else downloads.size_bytes(step.folder.parent)

"""How much of this machine a run uses at once: so many steps, in so much memory, and a measurement
alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from phipipe.execution.held import Cause
from phipipe.execution.nodes import Node
from phipipe.steps import Step

AWAY = 256  # steps that other machines may be asked for at a time


@dataclass(frozen=True, kw_only=True)
class Room:
    """``jobs`` steps may run here in ``memory_bytes``; ``is_here`` tells which do, and
    ``elsewhere`` whether others can."""

    jobs: int
    memory_bytes: float
    is_here: Callable[[Step], bool]
    elsewhere: bool

    def here(self, running: Iterable[Node]) -> list[Node]:
        """Steps that run on this machine."""
        return [node for node in running if self.is_here(node.step)]

    def takes_more(self, running: Iterable[Node]) -> bool:
        """Whether there is any step that could start beside those ``running``."""
        return self.elsewhere or not self._full(self.here(running))

    def obstacle(self, node: Node, running: Sequence[Node], installing: bool) -> Cause | None:
        """Why ``node`` cannot start beside those ``running``, and while toolchains are being
        installed; None where it can."""
        here = self.here(running)
        if not self.is_here(node.step):
            return "slot" if len(running) - len(here) >= AWAY else None
        if node.step.measurement:
            return "alone" if here or installing else None
        if full := self._full(here):
            return full
        needed = sum(one.step.memory_bytes for one in here) + node.step.memory_bytes
        return "memory" if here and needed > self.memory_bytes else None

    def _full(self, here: Sequence[Node]) -> Cause | None:
        if any(node.step.measurement for node in here):
            return "alone"
        return "slot" if len(here) >= self.jobs else None

"""Steps that go through the layers of one checkpoint start side by side, so that each layer is read
once for all of them (``processes.company``)."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from phipipe.execution.nodes import Node
from phipipe.execution.room import Room
from phipipe.execution.todo import Todo
from phipipe.processes import company
from phipipe.processes.company import Seat


class Sweeps:
    """Used from the run's own thread alone. ``scratch`` makes a folder that goes after the run."""

    def __init__(self, todo: Todo, room: Room, scratch: Callable[[], Path]) -> None:
        self._todo, self._room, self._scratch = todo, room, scratch
        self._alike: defaultdict[str, list[Node]] = defaultdict(list)  # by the checkpoint
        for node in todo.nodes.values():
            if (checkpoint := _checkpoint(node)) and room.is_here(node.step):
                self._alike[checkpoint].append(node)
        self._open: dict[str, _Gathering] = {}
        self._seats: dict[str, tuple[_Gathering, Seat]] = {}

    def ordered(self, nodes: Iterable[Node], measuring: bool) -> list[Node]:
        """Those of ``nodes`` that are a measurement, or not, in their order; but those of one
        checkpoint one after another."""
        groups: defaultdict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            if node.step.measurement == measuring:
                groups[_checkpoint(node) or node.identity].append(node)
        return [node for group in groups.values() for node in group]

    def holds(self, node: Node) -> bool:
        """Whether ``node`` should wait for others that will soon be ready to go with it."""
        return (
            self._room.jobs > 1
            and self._room.is_here(node.step)
            and any(
                other.waiting is None and not other.running and self._is_coming(other, node)
                for other in self._others(node)
            )
        )

    def seat(self, node: Node) -> Seat | None:
        """The place of ``node``, which starts, among those that start now; None: it goes alone."""
        checkpoint = _checkpoint(node)
        if checkpoint is None or not self._room.is_here(node.step):
            return None
        gathering = self._open.get(checkpoint)
        if gathering is None:
            if not any(one.waiting and not one.running for one in self._others(node)):
                return None
            gathering = self._open[checkpoint] = _Gathering(self._scratch())
        seat = gathering.seat()
        self._seats[node.identity] = gathering, seat
        return seat

    def seal(self) -> None:
        """All that start now have done so."""
        for gathering in self._open.values():
            company.seal(gathering.folder, gathering.seats)
        self._open.clear()

    def ended(self, node: Node) -> None:
        """``node`` has ended in whatever way."""
        if found := self._seats.pop(node.identity, None):
            gathering, seat = found
            seat.leave()
            gathering.going.discard(seat.number)
            if not gathering.going:
                gathering.close()

    def _others(self, node: Node) -> list[Node]:
        """Steps that go through the same layers and are still to do."""
        alike = self._alike.get(_checkpoint(node) or "", ())
        return [one for one in alike if one is not node and self._todo.lacks(one)]

    def _is_coming(self, other: Node, node: Node) -> bool:
        """Whether ``other`` fits beside ``node``, and all that it waits for can end before."""
        both = other.step.memory_bytes + node.step.memory_bytes
        seen, unseen = set[str](), [other]
        while unseen:
            for need in self._todo.needed(unseen.pop()):
                if need.result is None and need.identity not in seen:
                    if _checkpoint(need) == _checkpoint(node) or need.step.measurement:
                        return False
                    seen.add(need.identity)
                    unseen.append(need)
        return both <= self._room.memory_bytes


@dataclass
class _Gathering:
    """Steps that start together; ``going``: the numbers of those that have not ended."""

    folder: Path
    seats: int = 0
    going: set[int] = field(default_factory=set)
    _memory: BinaryIO | None = None

    def seat(self) -> Seat:
        if not self.seats:
            self._open_room()
        self.seats += 1
        self.going.add(self.seats - 1)
        return Seat(folder=str(self.folder), number=self.seats - 1, room=self._room)

    def _open_room(self) -> None:
        """Memory that processes share by a name. Where a system has none that ends with us, a
        file."""
        if sys.platform == "linux":
            self._memory = os.fdopen(os.memfd_create("phipipe-layers"), "wb")
            self._room = f"/proc/{os.getpid()}/fd/{self._memory.fileno()}"
        else:
            self._room = str(self.folder / "room")
            Path(self._room).touch()

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()


def _checkpoint(node: Node) -> str | None:
    """Whose output has the layers that ``node`` goes through."""
    return node.needs[node.step.layers] if node.step.layers else None

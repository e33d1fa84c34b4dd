"""Steps that go through the layers of one checkpoint start side by side, so that each layer is read
once for all of them (``processes.company``)."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from phipipe.execution.nodes import Node
from phipipe.execution.room import Room
from phipipe.execution.todo import Todo
from phipipe.processes import company
from phipipe.processes.company import Seat
from phipipe.store.store import Store


class Sweeps:
    """Of the steps in ``todo``; ``store`` has place for what they agree on. Used from the run's own
    thread alone."""

    def __init__(self, todo: Todo, room: Room, store: Store) -> None:
        self._todo, self._room, self._store = todo, room, store
        self._alike: defaultdict[str, list[Node]] = defaultdict(list)  # by the checkpoint
        for node in todo.nodes.values():
            if (checkpoint := _checkpoint(node)) and room.is_here(node.step):
                self._alike[checkpoint].append(node)
        self._waited: defaultdict[str, dict[str, Node]] = defaultdict(dict)
        self._open: dict[str, _Gathering] = {}  # by the checkpoint
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
        coming = [
            other
            for other in self._others(node)
            if other.waiting is None and not other.running and self._is_coming(other, node)
        ]
        self._waited[node.identity] |= {other.identity: other for other in coming}
        return bool(coming)

    def awaited(self, node: Node) -> list[Node]:
        """All that ``node``, which starts, needed, or waited for so that others can go with it."""
        both = [node, *self._waited.pop(node.identity, {}).values()]
        found = {need.identity: need for one in both for need in self._todo.needed(one)}
        return [need for need in found.values() if need.result]

    def seat(self, node: Node) -> Seat | None:
        """The place of ``node``, which starts, among those that start now; None: it goes alone."""
        checkpoint = _checkpoint(node) or ""
        if checkpoint not in self._open:
            if not any(one.waiting and not one.running for one in self._others(node)):
                return None
            self._open[checkpoint] = _Gathering(self._store)
        gathering = self._open[checkpoint]
        self._seats[node.identity] = gathering, gathering.seat()
        return self._seats[node.identity][1]

    def seal(self) -> None:
        """All that start now have done so."""
        for gathering in self._open.values():
            company.seal(gathering.folder, gathering.seats)
        self._open.clear()

    def ended(self, node: Node) -> None:
        """``node`` has ended in whatever way."""
        if found := self._seats.pop(node.identity, None):
            found[0].leave(found[1])

    def _others(self, node: Node) -> list[Node]:
        """Steps that go through the same layers on this machine and are still to do."""
        alike = self._alike.get(_checkpoint(node) or "", ())
        others = [one for one in alike if one is not node and self._todo.lacks(one)]
        return others if self._room.jobs > 1 and self._room.is_here(node.step) else []

    def _is_coming(self, other: Node, node: Node) -> bool:
        """Whether ``other`` fits beside ``node``, and all that it waits for can end before, and all
        that is held for."""
        behind = {other.identity: other}
        unseen = [other]
        while unseen:
            one = unseen.pop()
            wanted = [need for need in self._todo.needed(one) if need.result is None]
            found = [need for need in wanted if need.identity not in behind]
            found += [held for need in found for held in self._others(need)]
            behind |= {need.identity: need for need in found}
            unseen += found
        del behind[other.identity]
        if any(_checkpoint(o) == _checkpoint(node) or o.step.measurement for o in behind.values()):
            return False
        return other.step.memory_bytes + node.step.memory_bytes <= self._room.memory_bytes


class _Gathering:
    """Steps that start together, the ``folder`` in which they agree, and the memory that they
    share: none of a file where the system has such, or it may be written to the disk."""

    def __init__(self, store: Store) -> None:
        self.seats, self._going, self._stack = 0, set[int](), ExitStack()
        self.folder = self._stack.enter_context(store.scratch())
        if sys.platform == "linux":
            memory = self._stack.enter_context(os.fdopen(os.memfd_create("phipipe-layers"), "wb"))
            self._room = Path(f"/proc/{os.getpid()}/fd/{memory.fileno()}")
        else:
            self._room = self.folder / "room"
            self._room.touch()

    def seat(self) -> Seat:
        """One more."""
        number, self.seats = self.seats, self.seats + 1
        self._going.add(number)
        return Seat(folder=str(self.folder), number=number, room=str(self._room))

    def leave(self, seat: Seat) -> None:
        """The step in ``seat`` has ended; with the last one, all of it goes."""
        seat.leave()
        self._going.discard(seat.number)
        if not self._going:
            self._stack.close()


def _checkpoint(node: Node) -> str | None:
    """Whose output has the layers that ``node`` goes through."""
    return node.needs[node.step.layers] if node.step.layers else None

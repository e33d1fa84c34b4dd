"""Which toolchains a run still has to install, and which of its steps wait for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from phipipe.errors import PhipipeError
from phipipe.execution.nodes import Node

AT_ONCE = 2  # one may compile for minutes; more than two only wait for the network


class Installs:
    """Used from the run's own thread alone. ``going`` are installed now; ``failed`` could not
    be."""

    def __init__(self) -> None:
        self.going: set[str] = set()
        self.failed: dict[str, PhipipeError] = {}
        self._waiting: dict[str, dict[str, Node]] = {}

    def wait(self, tool: str, node: Node) -> None:
        """``node`` needs ``tool``.

        Raises:
            PhipipeError: it could not be installed.
        """
        if tool in self.failed:
            raise self.failed[tool]
        self._waiting.setdefault(tool, {})[node.identity] = node

    def next(self, is_due: Callable[[Node], bool]) -> Iterator[str]:
        """Toolchains to be installed now, each of which is then ``going``; not those that nobody
        needs any more."""
        for tool in [tool for tool in self._waiting if tool not in self.going]:
            if not any(map(is_due, self._waiting[tool].values())):
                del self._waiting[tool]
            elif len(self.going) < AT_ONCE:
                self.going.add(tool)
                yield tool

    def end(self, tool: str, error: PhipipeError | None) -> Sequence[Node]:
        """``tool`` is there, or failed with ``error``; returns who has waited for it."""
        self.going.discard(tool)
        if error is not None:
            self.failed[tool] = error
        return list(self._waiting.pop(tool, {}).values())

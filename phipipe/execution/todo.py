"""What is left of a graph: steps without a result, and those of them that can be looked at."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator

from phipipe.execution.nodes import Graph, Node
from phipipe.execution.results import Result


class Todo:
    """Work per event grows with what the event touches, never with the number of plans.

    ``tools`` counts the steps that are still to do in each toolchain.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes, self._names = graph.copy(), graph.names
        self._places = {identity: place for place, identity in enumerate(self.nodes)}
        self._open = dict(self.nodes)  # all that are still needed and have no result
        self._left = [len(set(names.values())) for names in self._names]  # per build
        self._failed: set[int] = set()  # builds
        self._followers: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes.values():
            for identity in {*node.needs.values(), *node.after}:
                self._followers[identity].append(node)
        self.tools = Counter(tool for node in self.nodes.values() if (tool := _shared_tool(node)))
        self._fresh = deque(node for node in self.nodes.values() if self.has_inputs(node))

    def __bool__(self) -> bool:
        return bool(self._open)

    def has_inputs(self, node: Node) -> bool:
        """Whether all that ``node`` reads or follows has a result."""
        return all(self.nodes[identity].result for identity in (*node.needs.values(), *node.after))

    def needed(self, node: Node) -> list[Node]:
        """All that ``node`` reads or follows, in the order of the plans."""
        wanted = {*node.needs.values(), *node.after}
        return [self.nodes[identity] for identity in sorted(wanted, key=self._places.__getitem__)]

    def is_due(self, node: Node) -> bool:
        """Whether ``node`` is needed, has no result, and can have one."""
        return node.identity in self._open and self.has_inputs(node)

    def lacks(self, node: Node) -> bool:
        """Whether ``node`` is needed and has no result."""
        return node.identity in self._open

    def take_fresh(self) -> Iterator[Node]:
        """Steps whose inputs have just come. Those that come meanwhile follow."""
        while self._fresh:
            node = self._fresh.popleft()
            is_new = node.result is None and not node.running and node.waiting is None
            if is_new and self.is_due(node):
                yield node

    def renew(self, node: Node) -> None:
        """Have ``node`` looked at once more."""
        self._fresh.append(node)

    def result(self, identity: str) -> Result:
        """The result of a node that has one."""
        result = self.nodes[identity].result
        assert result is not None  # only nodes whose inputs are there are ready
        return result

    def inputs(self, node: Node) -> dict[str, Result]:
        """Input name → what fills it."""
        return {name: self.result(identity) for name, identity in node.needs.items()}

    def readers(self, identity: str) -> list[Node]:
        """Steps that read the output of a node and are still to do, or being done."""
        return [
            node
            for node in self._followers[identity]
            if node.identity in self._open and identity in node.needs.values()
        ]

    def reads(self, digest: str) -> bool:
        """Whether a step that is still to do, or being done, reads that content."""
        return any(
            node.result is not None
            and node.result.stored.digest == digest
            and self.readers(node.identity)
            for node in self.nodes.values()
        )

    def before(self, node: Node) -> dict[str, Result]:
        """Step name → result of all that the provenance of ``node`` tells of."""
        return {name: self.result(identity) for name, identity in node.before.items()}

    def finish(self, node: Node, result: Result) -> list[int]:
        """``node`` has its result; returns the builds that thereby have all of theirs."""
        node.result = result
        self._settle(node)
        followers = self._followers[node.identity]
        self._fresh.extend(follower for follower in followers if self.has_inputs(follower))
        for build in node.builds:
            self._left[build] -= 1
        return [build for build in node.builds if not self._left[build]]

    def fail(self, build: int) -> None:
        """Nobody needs what only ``build`` does."""
        self._failed.add(build)
        for identity in self._names[build].values():
            if not self._is_wanted(self.nodes[identity]):
                self._settle(self.nodes[identity])

    def unfinished(self) -> list[int]:
        """Builds that lack results."""
        return [build for build, left in enumerate(self._left) if left]

    def put_back(self, *digests: str, reader: Node | None = None) -> None:
        """The results of those digests are gone: they are to be made again; or those alone that
        ``reader`` needs."""
        needed = self.nodes.keys() if reader is None else {*reader.needs.values()}
        for node in self.nodes.values():
            found = node.result is not None and node.result.stored.digest in digests
            if found and node.identity in needed:
                self._reopen(node)

    def _reopen(self, node: Node) -> None:
        node.result = None
        for build in node.builds:
            self._left[build] += 1
        if self._is_wanted(node):
            self._open[node.identity] = node
            if tool := _shared_tool(node):
                self.tools[tool] += 1
        self._fresh.append(node)

    def _settle(self, node: Node) -> None:
        """``node`` is no longer to do: it is done, or nobody needs it."""
        if self._open.pop(node.identity, None) and (tool := _shared_tool(node)):
            self.tools[tool] -= 1
            self.tools += Counter()  # drops what has come to zero

    def _is_wanted(self, node: Node) -> bool:
        return not node.builds <= self._failed


def _shared_tool(node: Node) -> str | None:
    """The toolchain whose idle servers ``node`` can use; some steps start one of their own."""
    return None if node.step.measurement or node.step.fresh else node.step.toolchain

"""Steps of plans as a graph that other programs draw: Mermaid, or Graphviz' language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from phipipe import words
from phipipe.execution.estimates import Estimate
from phipipe.execution.nodes import Node, graph
from phipipe.execution.outlook import Outlook
from phipipe.visible import one_line

UNSAFE = re.compile(r"[^\w .,:;()%+/→-]|_{2}")  # in a label of Mermaid's
CACHED = "fill:#d5f0e0,stroke:#2e8b57,color:#10391f"
WAITING = "fill:#eef1f6,stroke:#5b6b86,color:#1c2536"


@dataclass(frozen=True, kw_only=True)
class Box:
    """A step in the drawing. ``needs``: numbers of the boxes that it reads; ``after``: of those
    that must only be done before."""

    lines: tuple[str, ...]
    cached: bool
    needs: tuple[int, ...]
    after: tuple[int, ...]


def mermaid(outlooks: Sequence[Outlook], title: str) -> str:
    """The steps as a flowchart of Mermaid's; what is cached has a colour of its own."""
    drawn = boxes(outlooks)
    lines = ["---", f"title: {json.dumps(one_line(title), ensure_ascii=False)}", "---"]
    lines.append("flowchart TD")
    for i, box in enumerate(drawn):
        label = "<br/>".join(map(_plain, box.lines))
        lines.append(f'  s{i}["{label}"]:::{_state(box)}')
    lines += [
        f"  s{start} {'-->' if read else '-.->'} s{end}" for start, end, read in _edges(drawn)
    ]
    lines += [f"  classDef cached {CACHED}", f"  classDef waiting {WAITING}"]
    return "\n".join(lines)


def dot(outlooks: Sequence[Outlook], title: str) -> str:
    """The steps as a digraph of Graphviz'."""
    drawn = boxes(outlooks)
    lines = ["digraph steps {", f"  label={_quoted(one_line(title))}; labelloc=t; rankdir=TB;"]
    lines.append('  node [shape=box, style="rounded,filled", fontname="sans-serif"];')
    fills = {"cached": "#d5f0e0", "waiting": "#eef1f6"}
    for i, box in enumerate(drawn):
        label = _quoted("\n".join(box.lines))
        lines.append(f'  s{i} [label={label}, fillcolor="{fills[_state(box)]}"];')
    for start, end, read in _edges(drawn):
        lines.append(f"  s{start} -> s{end}{'' if read else ' [style=dashed]'};")
    return "\n".join([*lines, "}"])


def boxes(outlooks: Sequence[Outlook]) -> list[Box]:
    """Every distinct step, in an order that works; what builds share is one box."""
    whole = graph([one.plan for one in outlooks])
    cached, known = set[str](), dict[str, Estimate]()
    for one, own in zip(outlooks, whole.names, strict=True):
        cached |= {own[item.step.name] for item in one.forecast if item.cached}
        known |= {own[name]: estimate for name, estimate in one.estimates.items()}
    number = {identity: i for i, identity in enumerate(whole.nodes)}
    return [
        _box(node, number, identity in cached, known.get(identity))
        for identity, node in whole.nodes.items()
    ]


def _box(node: Node, number: Mapping[str, int], cached: bool, known: Estimate | None) -> Box:
    step = node.step
    facts = [words.size(step.output_bytes)] if step.output_bytes else []
    facts += ["cached"] if cached else []
    facts += [f"about {words.duration(known.seconds)}"] if known and not cached else []
    where = [step.toolchain] if step.toolchain else []
    reads = {number[identity] for identity in node.needs.values()}
    # a package comes after everything: arrows from all boxes would tell nothing
    after = set() if step.provenance else {number[identity] for identity in node.after} - reads
    texts = (node.label, ", ".join([*where, *facts]))
    return Box(
        lines=tuple(one_line(text) for text in texts if text),
        cached=cached,
        needs=tuple(sorted(reads)),
        after=tuple(sorted(after)),
    )


def _edges(drawn: Sequence[Box]) -> Iterator[tuple[int, int, bool]]:
    for end, box in enumerate(drawn):
        yield from ((start, end, True) for start in box.needs)
        yield from ((start, end, False) for start in box.after)


def _state(box: Box) -> str:
    return "cached" if box.cached else "waiting"


def _plain(text: str) -> str:
    """``text`` so that Mermaid shows it and reads nothing into it."""
    return UNSAFE.sub(lambda found: "".join(f"#{ord(c)};" for c in found[0]), text)


def _quoted(text: str) -> str:
    """``text`` as a string of Graphviz', where a backslash would mean something, too."""
    safe = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{safe}"'

"""JUnit's XML, by which CI systems show what became of a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from phipipe.batch.accept import Done

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# XML 1.0, 2.2: the rest cannot be written
NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(done: Sequence[Done], started: str) -> str:
    """JUnit's XML: one test case for each build; a gate or regression is a failure, anything else
    an error."""
    from xml.etree import ElementTree

    kinds = [_kind(one) for one in done]
    totals = {
        "tests": len(done),
        **{f"{k}s" if k != "skipped" else k: kinds.count(k) for k in _KINDS},
    }
    attributes = {"name": "phipipe batch", **{name: str(n) for name, n in totals.items()}}
    attributes["time"] = f"{sum(one.seconds for one in done):.3f}"
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", {**attributes, "timestamp": started})
    for one, kind in zip(done, kinds, strict=True):
        _case(suite, one, kind)
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


_KINDS = ("failure", "error", "skipped")


def _kind(done: Done) -> str:
    return {"gated": "failure", "failed": "error", "refused": "error", "skipped": "skipped"}.get(
        done.state, ""
    )


def _case(suite: Element, done: Done, kind: str) -> None:
    from xml.etree import ElementTree

    named = {
        "classname": _xml(done.item.path.as_posix()),
        "name": _xml(done.item.name),
        "time": f"{done.seconds:.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", named)
    if done.error is None:
        return
    first = done.error.message.splitlines()[0] if done.error.message else "failed"
    attributes = {"message": _xml(first)} | (
        {} if kind == "skipped" else {"type": type(done.error).__name__}
    )
    element = ElementTree.SubElement(case, kind, attributes)
    hint = f"\ntry: {done.error.hint}" if done.error.hint else ""
    element.text = _xml(f"{done.error.message}{hint}\nexit code {done.error.exit_code}")


def _xml(text: str) -> str:
    """``text`` without what XML cannot hold, such as a tool's colour codes."""
    return NOT_XML.sub("�", text)

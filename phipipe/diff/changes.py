"""Values that differ between two sides, and builds that stand on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phipipe.execution import why
from phipipe.output.diff import Change
from phipipe.steps import Json


def changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[Change]:
    """Every leaf in which two nested values differ."""
    return [
        Change(what=path, before=why.known(old), after=why.known(new), words=why.shown(old, new))
        for path, old, new in why.leaves(before, after)
    ]


def paired(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """Names on both sides that belong together: the same ones, or the only one of each side."""
    if len(before) == len(after) == 1:
        yield next(iter(before)), next(iter(after))
        return
    for name in before:
        if name in after:
            yield name, name

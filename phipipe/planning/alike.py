"""Plans of many builds, of which those that are alike but for their names share nearly all.

A batch has thousands of recipes and far fewer kinds of them. Of a kind the first is planned, the
others take its steps over: each has a package of its own, the rest of the work is one and the same.
What one ``Planner`` has read it does not read again; a file that changes counts for the next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from phipipe.planning import preparation, shipping
from phipipe.planning.plan import Plan
from phipipe.planning.plans import ReadOnce
from phipipe.recipe.build import Build


class _Kind(NamedTuple):
    """What decides a plan, but for names."""

    folder: Path
    recipe: str  # as JSON, all that is written or was settled
    options: str
    written: frozenset[str]


class Planner:
    """Plans builds one after another. ``elsewhere``: as ``preparation.prepare`` has it."""

    def __init__(self, *, elsewhere: bool = False) -> None:
        self._elsewhere, self._read = elsewhere, ReadOnce()
        self._first: dict[_Kind, Plan] = {}

    def plan(self, build: Build) -> Plan:
        """The plan of ``build``. What is wrong is found anew for each: it is said where it stands.

        Raises:
            PhipipeError: as ``preparation.prepare``.
        """
        kind = _kind(build)
        if first := self._first.get(kind):
            return _renamed(first, build)
        plan = preparation.prepare(build, self._read, elsewhere=self._elsewhere)
        self._first[kind] = plan
        return plan


def _kind(build: Build) -> _Kind:
    recipe = build.recipe.model_dump_json(exclude_unset=True, exclude={"name"})
    options = build.options.model_dump_json(exclude_unset=True) if build.options else ""
    return _Kind(build.folder, recipe, options, build.written)


def _renamed(first: Plan, build: Build) -> Plan:
    """The plan of ``build``, which differs in its names alone from the one that was planned
    ``first``."""
    settled = first.build.recipe.model_copy(update={"name": build.recipe.name})
    own = replace(first.build, name=build.name, recipe=settled, locate=build.locate)
    *shared, package = first.steps
    return replace(first, build=own, steps=(*shared, shipping.renamed(package, own)))

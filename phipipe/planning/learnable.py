"""Whether weights can be learned for a build, and what can be done where they cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from phipipe import backends
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.device import Device, Unit
from phipipe.recipe.learned import Learning, groups_words
from phipipe.recipe.recipe import Precision, Recipe

LEARN = ("weights", "learn")
GROUP_SIZE = ("weights", "group_size")
GROUPS = (-1, 32, 64, 128)  # of learned weights; -1 is a row
AWQ = "`--set 'weights={smooth: awq}'` smooths them instead"


def check(build: Build, target: Device, unit: Unit) -> None:
    """Refuse what no model changes: a precision, a backend or a unit that learned weights are not
    for.

    Raises:
        TargetError: says what would work.
    """
    recipe = build.recipe
    if recipe.weights.learn is None:
        return
    if recipe.precision != "int4":
        message = f"weights are learned at 4 bits, and `precision` is {recipe.precision}"
        hint = "set `precision: int4`, or `weights: none`"
        raise problem_at(build, LEARN, message, hint, ("precision",))
    if not stores_learned(recipe.backend):
        message = f"`{recipe.backend}` cannot store weights that are learned outside of it"
        hint = f"{_elsewhere(target)}; with `{recipe.backend}`, {AWQ}"
        raise problem_at(build, LEARN, message, hint, ("backend",))
    sizes = groups_of(recipe, unit)
    if recipe.weights.group_size not in sizes and not getattr(build.options, "map", {}):
        message = _no_such_groups(recipe, unit)
        raise problem_at(build, GROUP_SIZE, message, groups_hint(sizes), LEARN)


def _no_such_groups(recipe: Recipe, unit: Unit) -> str:
    """That the backend or the unit cannot have the recipe's groups of learned weights."""
    asked, able = groups_words(recipe.weights.group_size), runs(unit, recipe.precision)
    if recipe.weights.group_size == -1 and not _stores_rows(recipe.backend):
        return f"`{recipe.backend}` stores learned weights in groups, and none with {asked}"
    only = _either(groups_words(size) for size in able)
    return f"{unit.on or unit.api} runs no learned weights with {asked}, only with {only}"


def _stores_rows(backend: str) -> bool:
    """Whether 4 bits can have a scale per row there."""
    stores = backends.load(backend).stores
    return stores is not None and -1 in stores.groups.get(4, ())


def stores_learned(backend: str) -> bool:
    """Whether what is learned is stored exactly there."""
    stores = backends.load(backend).stores
    return stores is not None and stores.learned


def runs(unit: Unit | None, precision: Precision) -> list[int]:
    """The groups that ``unit`` insists on; -1 is a whole row. Empty: it runs all."""
    sizes: list[int] = unit.constraints.get(precision, {}).get("group_size", []) if unit else []
    return sizes


def groups_of(recipe: Recipe, unit: Unit | None, columns: Iterable[int] = ()) -> list[int]:
    """The groups of learned weights that the recipe's backend stores and ``unit`` runs, and that
    divide all rows of ``columns``."""
    sizes = runs(unit, recipe.precision)
    rows = set(columns)
    return [
        size
        for size in GROUPS
        if (not sizes or size in sizes)
        and not any(row % size for row in rows)
        and (size > 0 or _stores_rows(recipe.backend))
    ]


def groups_hint(sizes: Sequence[int]) -> str:
    """What to do where ``sizes`` are the groups that would work."""
    if not sizes:
        return f"no groups of learned weights would do: `--set weights.learn=none`; {AWQ}"
    methods = ", ".join(get_args(Learning))
    return (
        f"`--set weights.group_size={sizes[-1]}`"
        + (f" (or {_either(sizes[:-1])})" if sizes[:-1] else "")
        + f" works, with each of {methods}"
    )


def _either(values: Iterable[object]) -> str:
    """``64 or 128``."""
    return " or ".join(map(str, values))


def _elsewhere(target: Device) -> str:
    """Backends that store learned weights and run int4 on ``target``, with their units."""
    found = list(dict.fromkeys(_serving(target)))
    if not found:
        return f"nothing on {target.title} can"
    return f"on {target.title} these can: {', '.join(found)}"


def _serving(target: Device) -> Iterator[str]:
    for name in filter(stores_learned, backends.names()):
        for unit in target.units:
            if "int4" in backends.able(name, target, unit):
                yield f"`{name}` (`unit: {unit.api}`)"
                break

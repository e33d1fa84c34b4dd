"""Two recipe files, build by build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe import backends
from phipipe.diff.changes import changes, paired
from phipipe.output.diff import Difference, Pair
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.steps import Json


def compare(before: Path, after: Path) -> Difference:
    """What two recipe files say differently, defaults included.

    Raises:
        RecipeError: one of them is wrong.
    """
    old, new = _builds(before), _builds(after)
    both = list(paired(old, new))
    return Difference(
        kind="recipes",
        before=str(before),
        after=str(after),
        pairs=[
            Pair(
                before=old[a].name,
                after=new[b].name,
                inputs=changes(_values(old[a]), _values(new[b])),
                figures=[],
                notes=[],
            )
            for a, b in both
        ],
        only_before=[old[name].name for name in old if name not in {a for a, _ in both}],
        only_after=[new[name].name for name in new if name not in {b for _, b in both}],
    )


def _builds(path: Path) -> Mapping[str, Build]:
    """The builds by the names that their variants have: of two recipes that are called otherwise,
    the same."""
    builds = loading.load(path, options=backends.OptionsOf())
    return {build.name.removeprefix(build.recipe.name) or build.name: build for build in builds}


def _values(build: Build) -> dict[str, Json]:
    recipe: dict[str, Json] = build.recipe.model_dump(mode="json", exclude_none=True)
    options = build.options.model_dump(mode="json") if build.options else {}
    return {**recipe, "quantize": options}

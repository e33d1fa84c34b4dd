"""Whether the apps that a recipe makes its package ready for (`package.for`) can open it."""

from __future__ import annotations

from pydantic import BaseModel

from phipipe.errors import PhipipeError, TargetError
from phipipe.failures import as_one
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.device import Unit
from phipipe.recipe.places import Where
from phipipe.recipe.recipe import Recipe


def wanted(recipe: Recipe) -> list[str]:
    """The apps that the recipe names, in its order."""
    return list(recipe.package.apps)


def check(build: Build, unit: Unit, options: BaseModel, *, sees: bool = False) -> None:
    """Refuse apps that there are none of, that are named twice, or that cannot open the package of
    ``build`` with these ``options``; ``sees``: it has eyes.

    Raises:
        TargetError: says of each where it stands in the recipe.
    """
    names = wanted(build.recipe)
    if not names:
        return
    from phipipe.package import layouts
    from phipipe.package.layout import Built

    backend, chosen = build.recipe.backend, options.model_dump()
    built = Built(backend=backend, api=unit.api, options=chosen, sees=sees)
    wrong: list[PhipipeError] = []
    for number, name in enumerate(names):
        at: Where = ("package", "for", number)
        try:
            objection = layouts.load(name).objection(built)
        except TargetError as error:
            wrong.append(problem_at(build, at, error.message, error.hint))
            continue
        if name in names[:number]:
            wrong.append(problem_at(build, at, f"`{name}` is named twice", "take one out"))
        elif objection:
            hint = f"take `{name}` out, or build with {layouts.load(name).remedy}"
            wrong.append(problem_at(build, at, objection, hint))
    if wrong:
        raise as_one(wrong)

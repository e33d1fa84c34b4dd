"""A recipe file, read and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe import backends
from phipipe.api import pages
from phipipe.api.workplace import Names, UserPath, names_of, path_of, texts
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind
from phipipe.recipe import loading, overlay
from phipipe.recipe import shipped as shipped_recipes
from phipipe.recipe.build import Build
from phipipe.steps import Json

Sets = Mapping[str, Json] | str | Iterable[str]
"""Changes of a recipe: ``{"evaluate.tokens": 1024}``, or texts as after ``--set``."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """What a recipe file describes: one build, or one for each variant of its matrix.

    Attributes:
        path: the file.
        name: the recipe's name.
        builds: the builds. Each has ``name``, and ``recipe`` with device, backend, precision and
            all else that the file says.
    """

    path: Path
    name: str
    builds: tuple[Build, ...]

    @classmethod
    def load(cls, path: UserPath, sets: Sets = (), only: Names = ()) -> Recipe:
        """Read the recipe file ``path``.

        Args:
            path: the file.
            sets: values that replace the file's, for all variants.
            only: names of the variants wanted; all of them without it.

        Raises:
            RecipeError: everything that is wrong with the file, by line and column.
        """
        file = path_of(path, Kind.FILE, "the recipe")
        options = backends.OptionsOf()
        builds = loading.load(file, options=options, sets=texts_of(sets), only=names_of(only))
        return cls(path=file, name=builds[0].recipe.name, builds=tuple(builds))

    @classmethod
    def shipped(cls, name: str, sets: Sets = (), only: Names = ()) -> Recipe:
        """Read a recipe that comes with phipipe, such as ``quickstart``.

        Args:
            name: its name; ``phipipe recipes ls`` lists all of them.
            sets: as for ``load``.
            only: as for ``load``.

        Raises:
            RecipeError: there is no such recipe.
        """
        return cls.load(shipped_recipes.find(name), sets, only)

    def only(self, *names: str) -> Recipe:
        """The recipe with these of its variants alone, by the build's name or the variant's.

        Raises:
            RecipeError: there is no such variant.
        """
        chosen = overlay.wanted(names, [build.name for build in self.builds], self.name)
        return replace(self, builds=tuple(b for b in self.builds if b.name in chosen))

    def __repr__(self) -> str:
        return f"<Recipe {self.name}: {', '.join(build.name for build in self.builds)}>"

    def __str__(self) -> str:
        return "\n".join("  ".join(row) for row in self._rows())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (build.name, build.recipe.device, build.recipe.backend, build.recipe.precision)
            for build in self.builds
        ]

    def _repr_html_(self) -> str:
        head = ("build", "device", "backend", "precision")
        return pages.table(head, self._rows(), caption=f"recipe {self.name}")


def opened(recipe: Recipe | UserPath, sets: Sets, only: Names) -> Recipe:
    """What a call was given as ``recipe``, with the variants ``only``; all of them without it.

    Raises:
        RecipeError: as ``Recipe.load``; or there are ``sets`` for one that was read already.
    """
    if not isinstance(recipe, Recipe):
        return Recipe.load(recipe, sets, only)
    if texts_of(sets):
        raise RecipeError(
            "`sets` cannot change a recipe that was read already",
            hint="phipipe.Recipe.load(path, sets=...)",
        )
    return recipe.only(*names_of(only)) if names_of(only) else recipe


def texts_of(sets: Sets) -> list[str]:
    """``sets`` as the command line has them: ``KEY=VALUE``, the value in YAML.

    Raises:
        RecipeError: a value is none that a recipe can hold.
        TypeError: they are something else.
    """
    if isinstance(sets, str):
        return [sets]
    if isinstance(sets, Mapping):
        return [f"{key}={_text_of(key, value)}" for key, value in sets.items()]
    return list(texts(sets, "sets"))


def _text_of(key: object, value: Json) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # a path, a date, itself
        raise RecipeError(
            f"sets: the value of `{key}` is none that a recipe can hold: {error}",
            hint="give texts, numbers, true, false, lists and mappings",
        ) from None

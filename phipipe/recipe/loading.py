"""Recipe files on their way to builds: every problem is reported at once, with its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ValidationError

from phipipe.errors import RecipeError
from phipipe.files import file_names, user_paths
from phipipe.recipe import absent, empty, overlay, patterns
from phipipe.recipe.build import Build, one_address, paths_of
from phipipe.recipe.complaints import complaints
from phipipe.recipe.document import read
from phipipe.recipe.opened import Opened
from phipipe.recipe.places import Document, Where
from phipipe.recipe.recipe import MAX_VARIANTS, SLUG, Recipe
from phipipe.recipe.variants import BACKEND, VARIANT_KEYS, lay
from phipipe.steps import Json
from phipipe.suggestions import near, shorten

Known = dict[tuple[Path, str], tuple[Recipe, BaseModel]]
"""Recipes and options that are right, by folder and by all that they say but for a name."""
_NO_MATRIX = "a matrix is a list of variants, each a mapping such as `{precision: int8}`"
_NO_NAME = (
    "a variant's name is text: lower-case letters, digits, `.`, `_`, `-`; a letter or digit first"
)


def load(
    path: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    known: Known | None = None,
) -> list[Build]:
    """The builds that the file ``path`` describes.

    Args:
        options: backend name → the model of its ``quantize:`` section.
        sets: ``dotted.key=value`` overrides, the value in YAML; they win over every variant of a
            matrix, too.
        only: names of the variants wanted, all if empty; nothing is asked of the others.
        known: what earlier calls have found right, to be asked and added to. It holds as long as
            files stay, and ``options``.

    Raises:
        RecipeError: everything that is wrong with the file, by line and column, or an unknown name
            in ``only``.
    """
    builds, error = gather(path, options=options, sets=sets, only=only, known=known)
    if error:
        raise error
    return builds


def gather(
    path: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    known: Known | None = None,
) -> tuple[list[Build], RecipeError | None]:
    """As ``load``: what is wrong with the file, and the builds of the variants that are right all
    the same.

    Raises:
        RecipeError: nothing in the file can be looked at.
    """
    loading = _Loading(Opened(read(path), sets), options, known)
    return loading.builds(user_paths.resolved(path).parent, only)


def of_document(
    document: Document,
    folder: Path,
    *,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
) -> tuple[list[Build], RecipeError | None]:
    """As ``gather``, of a text that was read already; relative paths in it count from ``folder``.

    Raises:
        RecipeError: nothing in the text can be looked at.
    """
    return _Loading(Opened(document, sets), options).builds(folder, only)


@dataclass(frozen=True)
class _Variant:
    """A recipe's data with one entry of its matrix merged in; ``at`` is the entry's place."""

    data: dict[str, Json]
    name: str
    at: Where = ()


class _Loading:
    """One file on its way to builds: gathers problems instead of stopping at the first."""

    def __init__(
        self,
        opened: Opened,
        options: Mapping[str, type[BaseModel]],
        known: Known | None = None,
    ) -> None:
        self._opened, self._options = opened, options
        self._known: Known = {} if known is None else known
        self._data, self._problems = opened.data, opened.problems
        self._empty: set[Where] = set()  # outside of the matrix

    def builds(
        self, folder: Path, only: Sequence[str] = ()
    ) -> tuple[list[Build], RecipeError | None]:
        base = {key: value for key, value in self._data.items() if key != "matrix"}
        self._empty = self._note_empty(base)
        name = str(base.get("name"))
        variants = self._variants(base) if "matrix" in self._data else [_Variant(base, name)]
        if only and not self._problems:
            chosen = overlay.wanted(only, [one.name for one in variants], name)
            variants = [one for one in variants if one.name in chosen]
        made = (None if self._problems.enough else self._build(one, folder) for one in variants)
        builds = [build for build in made if build]
        if message := one_address(builds):
            self._problems.note(("publish",), message)
        return builds, self._problems.error if self._problems else None

    def _variants(self, base: dict[str, Json]) -> list[_Variant]:
        """One for every entry of the matrix."""
        matrix = self._data["matrix"]
        if not isinstance(matrix, list) or not matrix:
            self._problems.note(("matrix",), _NO_MATRIX)
            return []
        if len(matrix) > MAX_VARIANTS:
            message = f"a matrix has at most {MAX_VARIANTS} variants"
            self._problems.note(("matrix", MAX_VARIANTS), message)
        variants: list[_Variant] = []
        names: dict[str, int] = {}
        for i, entry in enumerate(matrix[:MAX_VARIANTS]):
            at: Where = ("matrix", i)
            if not isinstance(entry, dict):
                self._problems.note(at, _NO_MATRIX)
                continue
            variant = self._variant(base, entry, at)
            if (first := names.get(variant.name)) and set(entry) <= set(VARIANT_KEYS):
                message = f"a second variant `{shorten(variant.name)}`, as on line {first}"
                self._problems.note(at, f"{message}; give it a `name:` of its own")
            names.setdefault(variant.name, self._opened.document.place(at)[0])
            variants.append(replace(variant, name=f"{base.get('name')}-{variant.name}"))
        return variants

    def _variant(self, base: dict[str, Json], entry: dict[str, Json], at: Where) -> _Variant:
        """``entry`` of the matrix, under the name that it has beside the others."""
        merged = lay(base, entry)
        self._check_taken_back(base, entry, at)
        for key in entry:
            if key not in VARIANT_KEYS:
                self._problems.note((*at, key), _unknown_in_variant(key), key=True)
        if "source" in entry and not _is_adapter(entry["source"]):
            message = "`source` is the same for all variants, but for its `adapter`"
            self._problems.note((*at, "source"), message, key=True)
        name = entry.get("name", f"{merged.get('backend', BACKEND)}-{merged.get('precision')}")
        if "name" in entry and not (isinstance(name, str) and re.fullmatch(SLUG[1:-1], name)):
            self._problems.note((*at, "name"), _NO_NAME)
        elif words := _unfit(str(base.get("name")), str(name)):
            self._problems.note(at, words)
        merged = deepcopy(merged)
        for where, value, text in self._opened.overrides:
            overlay.put(merged, where, value, text)
        return _Variant(merged, str(name), at)

    def _check_taken_back(self, base: dict[str, Json], entry: dict[str, Json], at: Where) -> None:
        """Patterns that the variant ``entry`` takes back, and does not inherit."""
        inherited = lay(base, {**entry, "quantize": {}})["quantize"]
        for option, pattern, there in patterns.taken_back(entry.get("quantize"), inherited):
            message = patterns.stray(option, pattern, there)
            self._problems.note((*at, "quantize", option, pattern), message, key=True)

    def _build(self, variant: _Variant, folder: Path) -> Build | None:
        kind = folder, json.dumps({**variant.data, "name": None})
        found = self._renamed(kind, variant.data.get("name")) or self._checked(variant, folder)
        if found is None:
            return None
        if not self._problems:
            self._known.setdefault(kind, found)
        recipe, options = found
        locate = self._opened.locator(variant.at)
        return Build(variant.name, recipe, folder, options, locate, frozenset(variant.data))

    def _renamed(self, kind: tuple[Path, str], name: Json) -> tuple[Recipe, BaseModel] | None:
        """What is known of another recipe that says the same, with this one's ``name``."""
        fits = isinstance(name, str) and re.fullmatch(SLUG[1:-1], name)
        if not fits or kind not in self._known or file_names.unfit(name):
            return None
        recipe, options = self._known[kind]
        return recipe.model_copy(update={"name": name}), options

    def _checked(self, variant: _Variant, folder: Path) -> tuple[Recipe, BaseModel] | None:
        data = absent.cleaned(variant.data, Recipe, self._options_of(variant.data))
        without = self._note_empty(data, variant.at)
        check = partial(self._validate, variant=variant.at, without=without)
        recipe = check(Recipe, data, ())
        options = None
        backend, quantize = data.get("backend", BACKEND), data.get("quantize", {})
        if isinstance(backend, str) and backend not in self._options:
            guess = near(backend, self._options) or f"; there are {', '.join(self._options)}"
            message = f"unknown backend `{shorten(backend)}`{guess}"
            self._problems.note(("backend",), message, variant=variant.at)
        elif isinstance(backend, str) and isinstance(quantize, dict):
            options = check(self._options[backend], quantize, ("quantize",))
        if recipe is not None:
            self._look_at_paths(recipe, folder, variant.at)
        return None if recipe is None or options is None else (recipe, options)

    def _options_of(self, data: Mapping[str, Json]) -> type[BaseModel] | None:
        """The model of the ``quantize`` section of a recipe's ``data``; None where its backend is
        not known."""
        named = data.get("backend", BACKEND)
        known = isinstance(named, str) and named in self._options
        return self._options[named] if known else None

    def _note_empty(self, data: dict[str, Json], variant: Where = ()) -> set[Where]:
        """Where a recipe's ``data`` has keys without values. What a variant inherits is said
        once."""
        if not absent.stands_in(data, None):
            return set()
        found = dict(empty.places(data, Recipe))
        if options := self._options_of(data):
            inner = empty.places(data.get("quantize"), options)
            found |= {("quantize", *where): words for where, words in inner}
        for where in found.keys() - self._empty:
            self._problems.note(where, found[where], variant=variant)
        return set(found)

    def _look_at_paths(self, recipe: Recipe, folder: Path, variant: Where) -> None:
        """What no machine could have at a path is said where the path stands; that it is missing
        here is for later."""
        for where, text in paths_of(recipe):
            path = folder / os.path.expanduser(text)  # noqa: PTH111 (never raises)
            if odd := user_paths.oddity(path, text):
                self._problems.note(where, f"`{shorten(text)}` {odd}", variant=variant)

    def _validate(
        self,
        model: type[BaseModel],
        data: Json,
        prefix: Where,
        *,
        variant: Where,
        without: Collection[Where],
    ) -> Json:
        """``data`` as ``model``; what follows from places ``without`` a value is not said again."""
        try:
            # JSON's strict mode is the one we want: a list may become a tuple, "12" no number.
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for where, message, key in complaints(error, model):
                if self._problems.enough:
                    break
                at = (*prefix, *where)
                if key or not any(place[: len(at)] == at for place in without):
                    self._problems.note(at, message, key=key, variant=variant)
        return None


def _is_adapter(source: Json) -> bool:
    return isinstance(source, dict) and set(source) == {"adapter"}


def _unknown_in_variant(key: str) -> str:
    if key in Recipe.model_fields:
        return f"`{key}` is the same for all variants; write it before the matrix"
    return f"unknown key `{shorten(key)}` in a variant{near(key, VARIANT_KEYS)}"


def _unfit(recipe: str, name: str) -> str | None:
    """Why the package of the variant ``name`` of ``recipe`` cannot be called after both."""
    if reason := file_names.unfit(f"{recipe}-{name}"):
        return f"no folder can have the name `{shorten(name)}` everywhere: {reason}"
    if len(f"{recipe}-{name}") > 80:
        return "the recipe's and the variant's name have more than 80 characters together"
    return None

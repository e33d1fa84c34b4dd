"""What is wrong with a recipe, gathered, each problem at the nearest place that exists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from phipipe.errors import RecipeError
from phipipe.recipe.places import MAX_PROBLEMS, Document, Problem, Where


class Problems:
    """Those of one file, on which values from the command line lie."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._noted: list[Problem] = []
        self._sets: dict[Where, str] = {}  # what came from the command line → how it was said there

    def __bool__(self) -> bool:
        return bool(self._noted)

    @property
    def enough(self) -> bool:
        """Whether no more are wanted; some are the same, said by several variants."""
        return len(self._noted) > 4 * MAX_PROBLEMS

    @property
    def error(self) -> RecipeError:
        """One error for all."""
        words = "never a branch|no full commit"
        unpinned = any(re.search(words, problem.message) for problem in self._noted)
        hint = f"phipipe pin {self._document.name}" if unpinned else None
        return self._document.error(self._noted, hint)

    def overlay(self, where: Where, inner: Iterable[Where], shown: str) -> None:
        """What stood at ``where`` in the file is replaced by ``shown`` of the command line, which
        has a value at each place of ``inner``."""
        for known in (self._document.keys, self._document.values, self._sets):
            for old in [path for path in known if path[: len(where)] == where]:
                del known[old]
        self._sets |= {(*where, *place): shown for place in inner}

    def note(self, where: Where, message: str, key: bool = False, variant: Where = ()) -> None:
        """Note ``message`` at the nearest place that exists: in the variant, on the command line,
        in the file."""
        self._noted.append(self._problem(where, message, key, variant))

    def located(self, places: Sequence[Where], message: str, variant: Where) -> RecipeError:
        """An error about the one of ``places`` that decides."""
        where = self._decisive(places, variant)
        return self._document.error([self._problem(where, message, False, variant)])

    def _problem(self, where: Where, message: str, key: bool, variant: Where) -> Problem:
        if where == ("name",):  # the recipe's own; a variant has another key of that name
            variant = ()
        # What no variant says is missing from the recipe, once; what others say, from this variant.
        own = bool(variant) and self._varies(where[:1])
        for i in range(len(where), 0, -1):  # the command line has the last word
            if text := self._sets.get(where[:i]):
                return Problem(0, 0, f"--set {text}: {message}")
        for at, whole in _nearest(where, variant, own):
            if text := self._sets.get(at):  # a matrix of the command line's
                return Problem(0, 0, f"--set {text}: {message}")
            if at in self._document.values and (at or not own):
                return Problem(*self._document.place(at, key and whole), message)
        return Problem(1, 1, message)

    def _varies(self, key: Where) -> bool:
        """Whether some variant speaks of ``key``; all do of the place (), the variant as a
        whole."""
        matrix = self._document.data["matrix"]
        return not key or any(key[0] in entry for entry in matrix if isinstance(entry, dict))

    def _decisive(self, places: Sequence[Where], variant: Where) -> Where:
        """The first of ``places`` that the command line speaks of, else the variant, else the
        file."""
        values, sets = self._document.values, self._sets
        deciding = [at for at in places if sets.get(at)]
        if variant:
            own = [(at, (*variant, *at)) for at in places]
            deciding += [at for at, inner in own if inner in values or inner in sets]
        deciding += [at for at in places if at in values]
        return next(iter(deciding), places[0])


def _nearest(where: Where, variant: Where, own: bool) -> Iterator[tuple[Where, bool]]:
    """Where ``where`` may stand, the nearest first: in ``variant``, else in the rest of the file.

    With each, whether it is the whole of ``where``. ``own``: the variants have the key, so a place
    in the rest of the file comes after the variant itself.
    """
    for i in range(len(where), -1, -1):
        if variant and (i or own):
            yield (*variant, *where[:i]), i == len(where)
        yield where[:i], i == len(where)

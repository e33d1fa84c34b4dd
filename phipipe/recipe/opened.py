"""A recipe's text with what the command line lays on it (``--set``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.errors import RecipeError
from phipipe.recipe import absent, overlay
from phipipe.recipe.document import parse
from phipipe.recipe.places import Document, Problem, Where
from phipipe.recipe.problems import Problems
from phipipe.steps import Json


class Opened:
    """A recipe's ``data``, the ``problems`` found in it, and ``overrides`` of its variants: place,
    value, and how the user said so."""

    def __init__(self, document: Document, sets: Sequence[str] = ()) -> None:
        if not isinstance(document.data, dict):
            message = "a recipe is a mapping of keys: `name:`, `source:`, `device:` …"
            raise document.error([Problem(*document.place(()), message)])
        self.document, self.sets = document, tuple(sets)
        self.data: dict[str, Json] = document.data
        self.problems = Problems(document)
        self.overrides: list[tuple[tuple[str, ...], Json, str]] = []
        for text in sets:
            self._override(text)

    def _override(self, text: str) -> None:
        """Lay ``dotted.key=value`` on the file's data; a value replaces what is there."""
        where, value, shown = overlay.parts(text)
        parsed = _parsed(value, shown)
        if parsed.data == absent.NONE:
            overlay.check_taken_back(self.data, where, shown)
        overlay.put(self.data, where, parsed.data, shown)
        if where[0] != "matrix":
            self.overrides.append((where, parsed.data, shown))
        self.problems.overlay(where, parsed.values, shown)

    def locator(self, variant: Where) -> Locator:
        """What tells places in it, as seen from the ``variant`` of its matrix."""
        return Locator(self.document.name, self.document.text, self.sets, variant)


@dataclass(frozen=True)
class Locator:
    """Tells where in a recipe something is wrong.

    It keeps the text alone, and looks for places when it is asked: a batch has thousands of
    recipes, and hardly one of them is ever wrong.
    """

    name: str
    text: str
    sets: tuple[str, ...]
    variant: Where

    def __call__(self, places: Sequence[Where], message: str) -> RecipeError:
        """``message`` about the one of ``places`` that decides."""
        opened = Opened(parse(self.text, self.name), self.sets)
        return opened.problems.located(places, message, self.variant)


def _parsed(value: str, shown: str) -> Document:
    """The YAML ``value`` of an override; ``shown`` is how a message repeats the override."""
    if not value.strip():
        return Document("", "", values={(): (1, 1)})
    try:
        return parse(value, "")
    except RecipeError as error:
        # Without the place, which means nothing in so short a text.
        words = error.message.splitlines()[0].partition(": ")[2]
        raise RecipeError(f"--set {shown}: {words}") from None

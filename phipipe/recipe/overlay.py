"""What the command line says of a recipe: values laid over its own (``--set``), a choice of
variants (``--only``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phipipe.errors import RecipeError
from phipipe.recipe import patterns
from phipipe.recipe.absent import NONE
from phipipe.recipe.document import MAX_DEPTH, is_text
from phipipe.steps import Json
from phipipe.suggestions import near, shorten


def parts(text: str) -> tuple[tuple[str, ...], str, str]:
    """``dotted.key=value`` as key, value, and how a message repeats it.

    Raises:
        RecipeError: it is nothing of the kind.
    """
    dotted, equals, value = text.partition("=")
    given, shown = tuple(dotted.split(".", MAX_DEPTH + 1)), shorten(text)
    where = patterns.whole(given)
    if not equals or not all(given):
        raise RecipeError(f"--set {shown}: give it as KEY=VALUE, such as --set precision=int8")
    if len(given) > MAX_DEPTH:
        raise RecipeError(f"--set {shown}: a key of more than {MAX_DEPTH} parts")
    if not is_text(dotted):
        raise RecipeError(f"--set {shown}: a key with control characters")
    return where, value, shown


def put(data: dict[str, Json], where: tuple[str, ...], value: Json, text: str) -> None:
    """Lay ``value`` on ``data`` at ``where``; ``text`` is how the user said so. A section that the
    recipe, or one of its variants, takes back with `none` begins anew. A pattern becomes the
    first of its option."""
    inner = data
    for key in where[:-1]:
        if inner.get(key) == NONE:
            inner[key] = {}
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {text}: `{shorten(key)}` is not a mapping of keys")
    inner[where[-1]] = value
    if where[0] == patterns.SECTION and len(where) > 2 and where[1] in patterns.ENTRIES:
        options, option, name = data[patterns.SECTION], where[1], where[2]
        entries = options[option]
        options[option] = patterns.laid(entries, {name: entries[name]}, option)


def check_taken_back(data: Mapping[str, Json], where: tuple[str, ...], text: str) -> None:
    """Refuse to take the pattern ``where`` back that neither a recipe's ``data`` nor a variant of
    it has."""
    if where[0] != patterns.SECTION or len(where) != 3 or where[1] not in patterns.ENTRIES:
        return
    matrix = data.get("matrix")
    variants = matrix if isinstance(matrix, list) else []
    sections = [one.get(where[0]) for one in (data, *variants) if isinstance(one, dict)]
    there = [name for options in sections for name in patterns.of(options, where[1])]
    if where[2] not in there:
        message = patterns.stray(where[1], where[2], list(dict.fromkeys(there)))
        raise RecipeError(f"--set {text}: {message}")


def wanted(only: Sequence[str], known: Sequence[str], recipe: str) -> set[str]:
    """Names of the builds that ``only`` asks for; the recipe's own name may be left out."""
    short = {name.removeprefix(f"{recipe}-"): name for name in known}
    for name in only:
        if name not in known and name not in short:
            guess = near(name, [*short, *known])
            raise RecipeError(
                f"--only {shorten(name)}: no such variant{guess}",
                hint=f"variants: {', '.join(known)}",
            )
    return {short.get(name, name) for name in only}

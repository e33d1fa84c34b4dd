"""pydantic's errors in plain words, with the place of the value that each is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from phipipe.recipe.places import Where
from phipipe.recipe.scalars import MAX_DIGITS, is_text
from phipipe.recipe.strict import keys_of
from phipipe.steps import Json
from phipipe.suggestions import near, shorten, show

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_KEYS = 11  # more known keys than this are not listed beside an unknown one
MAX_LISTED = 6  # more choices than this are not listed in a message that has a suggestion
_TYPES = {  # pydantic's kinds of error → what it wanted
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "tuple_type": "a list",
}


class At(ValueError):
    """Raised by a model's validator: a rule is broken, and ``key`` is the value inside of it to
    look at."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def complaints(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Where, str, bool]]:
    """pydantic's errors in plain words: (place, message, whether the place is a key)."""
    for item in error.errors(include_url=False):
        kind, given = item["type"], item.get("input")
        where: Where = tuple(part for part in item["loc"] if part != "[key]")
        name = str(where[-1]) if where else ""
        if kind == "too_short" and given:
            continue  # only items that are wrong themselves, and told below or above
        if kind == "extra_forbidden":
            yield where, _unknown_key(model, where), True
        elif kind == "missing":
            yield where, f"`{name}` is missing", False
        elif kind == "literal_error":
            is_key = "[key]" in item["loc"]
            word = "metric" if is_key else "value"
            yield where, _choice(word, given, item["ctx"]["expected"]), is_key
        elif kind == "value_error":
            cause = item["ctx"]["error"]
            yield (*where, cause.key) if isinstance(cause, At) else where, str(cause), False
        elif kind == "string_pattern_mismatch":
            yield where, _pattern(name, str(given), item["ctx"]["pattern"]), False
        else:
            yield where, _expected(kind, given, item.get("ctx", {}), str(item["msg"])), False


def _unknown_key(model: type[BaseModel], where: Where) -> str:
    name = str(where[-1])
    return f"unknown key `{shorten(name)}`{_keys(name, _fields(model, where[:-1]))}"


def _keys(name: str, known: list[str]) -> str:
    """Which key ``name`` may have meant; all that are known where none is like it."""
    guess = near(name, known)
    if guess or len(known) > MAX_KEYS:
        return guess
    return f"; known here: {', '.join(known)}" if known else ""


def _choice(word: str, given: Json, expected: str) -> str:
    choices = expected.replace(" or ", ", ").split(", ")
    known = [choice.strip("'") for choice in choices]
    if isinstance(given, str) and given in choices:  # which have quotes where they are text
        return f"expected a number, got text `{given}`; take the quotes away"
    if given is None:
        return f"no {word} here; it is one of {', '.join(known)}"
    guess = near(str(given), known)
    listed = f", it is one of {', '.join(known)}" if len(known) <= MAX_LISTED or not guess else ""
    shown = f"`{shorten(given)}`" if isinstance(given, str) else show(given)
    return f"unknown {word} {shown}{listed}{guess}"


def _expected(kind: str, given: Json, limits: dict[str, Json], otherwise: str) -> str:
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, got {show(given)}{_quotes(kind, given)}"
    words = {
        "finite_number": "must be a finite number",
        "greater_than": f"must be greater than {limits.get('gt')}, not {show(given)}",
        "greater_than_equal": f"must be at least {limits.get('ge')}, not {show(given)}",
        "less_than_equal": f"must be at most {limits.get('le')}, not {show(given)}",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
    }
    return words.get(kind, otherwise)


def _quotes(kind: str, given: Json) -> str:
    """Advice where a value is of another type only for its quotes, or for the lack of them."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if kind not in ("int_type", "float_type", "bool_type") or not isinstance(given, str):
        return ""
    if is_text(given):
        return ""
    return "; take the quotes away" if 0 < len(given) <= MAX_DIGITS else ""


def _pattern(name: str, given: str, pattern: str) -> str:
    shown = shorten(given)
    if name == "revision" and re.fullmatch("[0-9a-fA-F]{4,}", given):
        return (
            f"`{shown}` is no full commit; a recipe pins one by all its 40 hexadecimal "
            f"digits, in lower case"
        )
    if name == "revision":
        return (
            f"`{shown}` is no commit; a recipe pins one, never a branch or tag: write the "
            f"commit's 40 hex digits"
        )
    if name == "repo":
        return f"`{shown}` is no repository; it is written OWNER/NAME"
    if name == "name":
        return (
            f"`{shown}` will not do: lower-case letters, digits, `.`, `_`, `-`; a letter or "
            f"digit first; at most 80"
        )
    return f"`{shown}` does not match the pattern {pattern}"


def _fields(model: type[BaseModel], where: Where) -> list[str]:
    """Keys that are known where an unknown one was found."""
    current: Json = model
    for part in where:
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        current = next((k for k in _within(annotation) if hasattr(k, "model_fields")), current)
    return list(keys_of(current))


def _within(annotation: Json) -> Iterator[Json]:
    """The types that ``annotation`` is made of: those in a mapping or a choice, too."""
    yield annotation
    inner = getattr(annotation, "__args__", ())
    for one in (*inner, getattr(annotation, "__origin__", None)):  # Annotated has its type there
        if one is not None:
            yield from _within(one)

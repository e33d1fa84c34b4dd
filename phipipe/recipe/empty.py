"""Keys that are written without a value: lines that were not finished.

One rule for all of them, wherever they stand: they are refused. YAML reads `unit:` as null, and
neither "as if the line were not there" nor "back to the default" would be a safe guess at what was
meant; `none` says the latter (``absent``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from phipipe.recipe import absent
from phipipe.recipe.places import Where
from phipipe.recipe.strict import keys_of
from phipipe.steps import Json

Found = Iterator[tuple[Where, str]]


def places(data: Json, model: type[BaseModel]) -> Found:
    """Where ``data`` of ``model`` has a key without a value, and what to say of it. Of keys that
    the model does not know it has nothing to say, and nothing of what stands in them."""
    for key, value in data.items() if isinstance(data, dict) else ():
        field = keys_of(model).get(key)
        if field is None:
            continue
        if value is None:
            takes_none = model.__name__ not in absent.CHOICES and absent.may_be_none(key, field)
            yield (key,), f"`{key}` has no value; {_advice(key, field, takes_none)}"
        else:
            yield from _under(key, _inside(value, field))


def _inside(value: Json, field: FieldInfo) -> Found:
    if absent.maps(field) and isinstance(value, dict):
        keys, entry = absent.entries(field.annotation)
        for name, one in value.items():
            if one is None and not (keys and name not in keys):
                advice = f"write one, `{absent.NONE}`, or leave the key out"
                yield (name,), f"`{name}` has no value; {advice}"
            elif entry:
                yield from _under(name, places(one, entry))
    elif inner := absent.model_of(field.annotation):
        yield from places(value, inner)


def _under(key: str, found: Found) -> Found:
    return (((key, *where), words) for where, words in found)


def _advice(key: str, field: FieldInfo, takes_none: bool) -> str:
    """What can be written there."""
    if get_origin(field.annotation) is Literal:
        return f"it is one of {', '.join(map(str, get_args(field.annotation)))}"
    written = "write one"
    inner = absent.model_of(field.annotation)
    if field.default is None and inner and not any(_needs(inner)):
        written = f"`{key}: {{}}` takes all defaults"
    others = [f"`{absent.NONE}`"] if takes_none else []
    others += ["leave the key out"] if not field.is_required() else []
    if not others:
        return written
    return f"{', '.join([written, *others[:-1]])}, or {others[-1]}"


def _needs(model: type[BaseModel]) -> Iterator[bool]:
    """Whether something has to be written inside of ``model``."""
    yield model.__name__ in absent.CHOICES
    yield from (field.is_required() for field in model.model_fields.values())

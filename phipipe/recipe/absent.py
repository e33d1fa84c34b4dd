"""``none``: how a variant, or ``--set``, takes back what the recipe says of an optional key.

A variant is laid on its recipe, so a key that it leaves out is inherited. Where a key's absence
means something (no learning, the device's usual unit, no limit), no other value says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from phipipe.recipe.strict import keys_of
from phipipe.steps import Json

NONE = "none"
SECTIONS = ("quantize", "weights")  # that change nothing of what is usual where they are absent
CHOICES = (
    "Source",
    "Base",
    "Adapter",
    "Dataset",
    "Text",
    "Prompts",
    "SigningKey",
)  # by the models' names
"""One of several keys is given; a variant replaces the whole, so nothing is inherited. Their
values are free text: `none` may be a file."""


def stands_in(data: Json, value: Json) -> bool:
    """Whether ``value`` stands anywhere in ``data``. Hardly a recipe has a `none`, or a key without
    a value; of the others nothing needs to be compared with the models."""
    if isinstance(data, dict | list):
        inner = data.values() if isinstance(data, dict) else data
        return value in inner or any(
            stands_in(one, value) for one in inner if isinstance(one, dict | list)
        )
    return bool(data == value)


def without(data: Json, model: type[BaseModel]) -> Json:
    """``data`` of ``model`` without the optional keys that are ``none``, at any depth. What is
    wrong with the rest is for the model to say."""
    if not isinstance(data, dict) or model.__name__ in CHOICES:
        return data
    kept = {}
    for key, value in data.items():
        field = keys_of(model).get(key)
        if field is None:
            kept[key] = value
        elif not (value == NONE and may_be_none(key, field)):
            kept[key] = _inside(value, field)
    return kept


def may_be_none(key: str, field: FieldInfo) -> bool:
    """Whether the field's absence is a state that no value of it names."""
    return field.default is None or key in SECTIONS or maps(field)


def maps(field: FieldInfo) -> bool:
    """Whether it holds entries that are optional one by one: metric → limit, pattern → width."""
    return field.default == {} and field.annotation != dict[str, Json]


def _inside(value: Json, field: FieldInfo) -> Json:
    if not isinstance(value, dict):
        return value
    if not maps(field):
        inner = model_of(field.annotation)
        return without(value, inner) if inner else value
    keys, entry = entries(field.annotation)
    return {
        name: without(one, entry) if entry else one
        for name, one in value.items()
        if one != NONE or (keys and name not in keys)  # a key that nobody knows stays, to be told
    }


def model_of(annotation: object) -> type[BaseModel] | None:
    """The model among ``X``, ``X | None``; None where there is none."""
    kinds = (annotation, *get_args(annotation))
    found = (one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel))
    return next(found, None)


def entries(annotation: object) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """Of a mapping: the keys that it may have (none listed: any), and the model of its entries."""
    key, entry = get_args(_plain(annotation))
    return get_args(key), model_of(_plain(entry))


def _plain(annotation: object) -> object:
    """Without what pydantic is told beside it."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def cleaned(
    data: Mapping[str, Json], recipe: type[BaseModel], options: type[BaseModel] | None
) -> dict[str, Json]:
    """A recipe's ``data`` without what is ``none``; ``options`` is the model of its ``quantize``,
    where the backend is known."""
    if not stands_in(data, NONE):
        return dict(data)
    found: dict[str, Json] = without(dict(data), recipe)
    if options and "quantize" in found:
        found["quantize"] = without(found["quantize"], options)
    return found

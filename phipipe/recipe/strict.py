"""The models that parts of a recipe are made of: nothing unknown, nothing empty."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, model_validator

from phipipe.recipe.complaints import At
from phipipe.steps import Json


class Model(BaseModel):
    """Frozen; an unknown key is an error; nothing is coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sparse(Model):
    """Keys are optional, but one that is written has a value: `path:` alone is a line that was not
    finished."""

    @model_validator(mode="before")
    @classmethod
    def _written(cls, data: Json) -> Json:
        for key in data if isinstance(data, dict) else ():
            if data[key] is None and key in cls.model_fields:
                raise At(key, f"`{key}` has no value; write one, or leave the key out")
        return data


def exactly_one(value: BaseModel, names: Sequence[str]) -> None:
    """Refuse ``value`` unless one of the fields ``names`` is written, and no other of them.

    Raises:
        ValueError: says which are there.
    """
    given = [name for name in names if getattr(value, name) is not None]
    if len(given) != 1:
        there = " and ".join(f"`{name}`" for name in given) or "none"
        choices = ", ".join(f"`{name}`" for name in names)
        raise ValueError(f"give exactly one of {choices}; there is {there}")

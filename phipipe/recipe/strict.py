"""The models that parts of a recipe are made of: nothing unknown. That nothing is left empty is for
``empty`` to say, of what the user wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Model(BaseModel):
    """Frozen; an unknown key is an error; nothing is coerced. Checks are built on first use: most
    commands need those of the whole recipe alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def __deepcopy__(self, memo: object = None) -> Self:
        """Itself: nobody can change it. Each recipe would get a copy of every default."""
        return self


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of ``model`` as users write them: one that is a word of Python's is an alias."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


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

"""What a recipe says of its package: the section `package:`."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from phipipe.recipe.complaints import At
from phipipe.recipe.strict import Model
from phipipe.steps import Json


class Packaging(Model):
    """What the package is made ready for."""

    model_config = ConfigDict(serialize_by_alias=True)  # `for` is a word of Python's

    apps: list[str] = Field(
        [],
        alias="for",
        max_length=50,
        description="Apps that open the package's folder as it is: it then holds the small files "
        "that they want (`phipipe apps`).",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_of_today(cls, data: Json) -> Json:
        if isinstance(data, dict) and "format" in data:
            raise At("format", "what ships is always a folder now: take `format` out")
        return data

"""What a recipe says of its package: the section `package:`."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from phipipe.recipe.strict import Model


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

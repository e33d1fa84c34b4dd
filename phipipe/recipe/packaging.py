"""What the user writes about the finished package: `package:`."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from phipipe.recipe.complaints import At
from phipipe.recipe.strict import Model, exactly_one
from phipipe.steps import Json

VARIABLE = "^[A-Za-z_][A-Za-z0-9_]{0,127}$"
OURS = "PHIPIPE_"  # our own settings are shown, recorded, and handed to child processes


class SigningKey(Model):
    """Where a private key is: one of these. The key itself never stands in a recipe."""

    env: str | None = Field(
        None,
        pattern=VARIABLE,
        description="An environment variable that holds the key (PEM), or the path of its file.",
    )
    file: str | None = Field(
        None, min_length=1, description="A PEM file; relative to the recipe's folder."
    )

    @model_validator(mode="after")
    def _one(self) -> SigningKey:
        exactly_one(self, ("env", "file"))
        if self.env and self.env.upper().startswith(OURS):
            raise At(
                "env",
                f"variables that begin with `{OURS}` hold no secrets: child processes see them",
            )
        return self


class Signing(Model):
    """The package is signed when it is written. `SIGNING_KEY_PASSPHRASE` opens the key."""

    key: SigningKey = Field(description="The private key: EC P-256, P-384 or P-521.")
    certificate: str | None = Field(
        None, min_length=1, description="The key's certificate (PEM), to sign as whom it names."
    )
    chain: list[str] = Field([], description="Certificates (PEM) between that and its root.")

    @model_validator(mode="after")
    def _whole(self) -> Signing:
        if self.chain and self.certificate is None:
            raise At("chain", "a `chain` needs the key's `certificate`")
        return self


class Packaging(Model):
    """What the package is made ready for, and who signs it."""

    model_config = ConfigDict(serialize_by_alias=True)  # `for` is a word of Python's

    apps: list[str] = Field(
        [],
        alias="for",
        max_length=50,
        description="Apps that open the package's folder as it is: it then holds the small files "
        "that they want (`phipipe apps`).",
    )
    sign: Signing | None = Field(None, description="Sign it; without it nobody does.")

    @model_validator(mode="before")
    @classmethod
    def _is_of_today(cls, data: Json) -> Json:
        if isinstance(data, dict) and "format" in data:
            raise At("format", "what ships is always a folder now: take `format` out")
        return data

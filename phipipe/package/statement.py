"""The shape of an in-toto statement with SLSA's predicate for builds, as strangers may write one.

Names of fields are the standards' own. Fields that they leave optional are so here, and unknown
ones are left alone, as in-toto asks of readers.

https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from phipipe.package.bounds import Key, Line, Part
from phipipe.steps import Json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
MAX_SUBJECTS = 100
MAX_DEPENDENCIES = 20_000

Digests = Annotated[dict[Key, Line], Field(max_length=20)]
Address = Annotated[Line, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:.")]


class Descriptor(Part):
    """An artifact: by name, address or digest."""

    name: Line | None = None
    uri: Line | None = None
    digest: Digests = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_known_by_something(self) -> Descriptor:
        if not (self.name or self.uri or self.digest):
            raise ValueError("it has neither name, uri nor digest")
        return self


class Subject(Descriptor):
    """What a statement is about, always by digest."""

    digest: Annotated[Digests, Field(min_length=1)]


Dependencies = Annotated[list[Descriptor], Field(max_length=MAX_DEPENDENCIES)]


class BuildDefinition(Part):
    """What was built from what."""

    buildType: Address
    externalParameters: dict[Key, Json]
    resolvedDependencies: Dependencies = Field(default_factory=list)


class Builder(Part):
    """Who is trusted to have built it."""

    id: Address
    version: Annotated[dict[Key, Line], Field(max_length=100)] = Field(default_factory=dict)


class RunDetails(Part):
    """How this build went."""

    builder: Builder


class Predicate(Part):
    """SLSA's provenance."""

    buildDefinition: BuildDefinition
    runDetails: RunDetails


class Statement(Part):
    """``provenance.json``."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[Subject], Field(min_length=1, max_length=MAX_SUBJECTS)]
    predicateType: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

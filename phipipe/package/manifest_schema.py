"""What a manifest must hold before anything believes it: kinds and bounds of every value that
phipipe uses later.

Unknown keys are left alone (a later phipipe may add some within a format), but no value anywhere in
a manifest escapes the bounds on text and numbers. What came into format 1 later has a default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from phipipe import backends
from phipipe.evaluate import reports
from phipipe.files import file_names
from phipipe.files.json_files import shown
from phipipe.package import description
from phipipe.package.bounds import (
    Count,
    Curve,
    Digest,
    Figure,
    Figures,
    Key,
    Line,
    Part,
    Share,
    line,
    plain,
    unfit,
)
from phipipe.package.manifest_answers import Answers
from phipipe.package.manifest_sampling import Sampling
from phipipe.recipe.recipe import SLUG
from phipipe.recipe.source import COMMIT, REPO, is_gguf
from phipipe.steps import Json

MAX_FILES = 10_000
MAX_IDS = 10_000


class Malformed(ValueError):
    """A manifest that is not as phipipe writes it; the message says where."""


class File(Part, description.File):
    """A file by its content; the only part that never grew, and never will within a format."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(max_length=file_names.MAX_PATH), AfterValidator(line)]
    size: Annotated[int, Field(ge=0, le=2**50)]
    sha256: Digest


Files = Annotated[list[File], Field(max_length=MAX_FILES)]


class Origin(Part, description.Origin):
    """A part of the original."""

    kind: Literal["hub", "builtin", "path"]
    name: Line | None = None
    repo: Annotated[str, Field(pattern=REPO, max_length=200)] | None = None
    revision: Annotated[str, Field(pattern=COMMIT)] | None = None
    file: Line | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Origin:
        _check_name(self)
        return self


def _check_name(part: Origin | Source) -> None:
    if part.kind == "hub" and not (part.repo and part.revision):
        raise ValueError("it names no repository and revision")
    if part.file is not None and (part.kind != "hub" or not is_gguf(part.file)):
        raise ValueError("its file is no GGUF of a repository")
    if part.kind != "hub" and not part.name:
        raise ValueError("it has no name")
    if part.kind == "builtin" and not re.fullmatch(SLUG[1:-1], str(part.name)):
        raise ValueError("its name is no model of phipipe's")


class Source(Part, description.Source):
    """Where the original is, and what it is."""

    kind: Literal["hub", "builtin", "path", "adapter"]
    name: Line | None = None
    repo: Annotated[str, Field(pattern=REPO, max_length=200)] | None = None
    revision: Annotated[str, Field(pattern=COMMIT)] | None = None
    file: Line | None = None
    license: Line | None = None
    architecture: Line
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    context_length: Annotated[int, Field(ge=1, le=2**31)]
    base: Origin | None = None
    adapter: Origin | None = None
    digest: Digest
    files: Files = Field(default_factory=list)
    widened_from: Line | None = None

    @model_validator(mode="after")
    def _is_named(self) -> Source:
        _check_name(self)
        if self.kind == "adapter" and not (self.base and self.adapter):
            raise ValueError("it names no base and adapter")
        return self


class Step(Part, description.Step):
    """A step's record."""

    key: Line
    digest: Digest
    tools: Annotated[dict[Key, Line], Field(max_length=2000)]
    params: dict[Key, Json] = Field(default_factory=dict)
    inputs: dict[Key, Line] = Field(default_factory=dict)
    outputs: Files = Field(default_factory=list)
    runs: Line = ""
    version: Count = 1
    toolchain: Line | None = None


class Baseline(Part, reports.Scored):
    """On what the original was scored, and how well it did."""

    tokens: Count
    window: Count
    skip: Count = 0
    ppl: Figure
    ppl_stderr: Figure = 0.0


class _Required(Part):
    kld_mean: Figure
    size_gib: Share
    bits_per_weight: Share


class Vision(Part, reports.Vision):
    """What became of pictures."""

    metrics: Figures = Field(default_factory=dict)


class Misread(Part, reports.Misread):
    """A text that the packaged tokenizer reads otherwise."""

    kind: Literal["text", "chat"]
    text: Line
    expected: Annotated[list[Count], Field(max_length=MAX_IDS)]
    got: Annotated[list[Count], Field(max_length=MAX_IDS)]


class Sanity(Part, reports.Sanity):
    """What a table of averages hides."""

    __pydantic_extra__: dict[Key, bool | Figure | list[bool] | None]

    tokenizer_difference: Misread | None = None
    greedy_agreement: Figure | None = None
    repetition: Figure | None = None


class Fidelity(Part, description.Fidelity):
    """How far the artifact is from the original."""

    metrics: Figures
    stderr: Figures
    positions: Count = 0
    profile: Annotated[dict[Key, Curve], Field(max_length=20)] = Field(default_factory=dict)
    sanity: Sanity
    sampling: Sampling | None = None
    baseline: Baseline
    vision: Vision | None = None
    generation: Answers | None = None

    @model_validator(mode="after")
    def _has_what_boards_need(self) -> Fidelity:
        _Required.model_validate(self.metrics)
        if len(self.profile.get("quantiles", [])) == 1:
            raise ValueError("one quantile is no curve")
        return self


class Speed(Part, reports.Speed):
    """How fast it was, and where."""

    metrics: Figures
    spread: Annotated[
        dict[Key, Annotated[list[Figure], Field(min_length=2, max_length=2)]], Field(max_length=50)
    ] = Field(default_factory=dict)
    host: Annotated[dict[Key, Line | int | float | None], Field(max_length=50)] = Field(
        default_factory=dict
    )
    prompt_tokens: Count = 0
    new_tokens: Count = 0


class Device(Part, description.Device):
    """The device, as far as it travels."""

    name: Line = ""
    title: Annotated[Line, Field(min_length=1)]
    architecture: Line | None = None
    sources: list[Line] = Field(default_factory=list)


class DataSet(Part, description.DataSet):
    """Where a text comes from."""

    repo: Line


class Text(Part, description.Text):
    """The evaluation text."""

    builtin: Line | None = None
    file: Annotated[Line, AfterValidator(plain)] | None = None
    dataset: DataSet | None = None


class Evaluation(Part, description.Evaluation):
    """How it was evaluated."""

    text: Text = Text()
    accept: Annotated[list[Line], Field(max_length=20)] = Field(default_factory=list)


class Recipe(Part, description.Recipe):
    """Of the recipe, what is read without being built again; ``run.finished`` reads it whole."""

    backend: Line
    precision: Line
    device: Annotated[Line, AfterValidator(plain)] = ""
    evaluate: Evaluation = Evaluation()


class Manifest(Part, description.Description):
    """``manifest.json``."""

    name: Annotated[str, Field(pattern=SLUG)]
    phipipe: Line
    backend: Line
    backend_title: Line
    precision: Line
    scheme: Line
    api: Line
    on_target: Literal["true", "emulated", "false"]
    device: Device
    recipe: Recipe
    source: Source
    fidelity: Fidelity
    speed: Speed
    steps: Annotated[dict[Key, Step], Field(max_length=500)]
    fixups: dict[Key, description.Fixup] = Field(default_factory=dict)
    warnings: Annotated[list[str], Field(max_length=1000)] = Field(default_factory=list)
    gates: Annotated[list[reports.Verdict], Field(max_length=200)] = Field(default_factory=list)
    twin: Line | None = None
    weights: description.LearnedWeights | None = None
    files: Files = Field(default_factory=list)
    digest: str = ""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if (self.recipe.backend, self.recipe.precision) != (self.backend, self.precision):
            raise ValueError("its recipe is for another backend or precision")
        if missing := {"text", "source"} - set(self.steps):
            raise ValueError(f"`steps` has no `{min(missing)}`")
        return self


def parse(manifest: Mapping[str, Json]) -> Manifest:
    """``manifest`` as its parts.

    Raises:
        Malformed: something in it is not as phipipe writes it, in words.
    """
    for where, reason in unfit(manifest):
        raise Malformed(f"`{shown(where)}` {reason}")
    try:
        whole = Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        raise Malformed(_words(error)) from None
    if whole.backend not in backends.names():
        raise Malformed(
            f"it is for a backend `{shown(whole.backend)}`, which this phipipe does not have"
        )
    return whole


def _words(error: ValidationError) -> str:
    if where := reports.place(error):
        return f"`{shown(where)}` is not as phipipe writes it"
    reason = error.errors(include_url=False, include_input=False)[0]["msg"]
    return f"it is not as phipipe writes it: {reason.removeprefix('Value error, ')}"

"""What a package says of itself, part by part: the manifest but for its list of files.

Kinds alone: what a stranger's manifest must keep to besides is in ``manifest_schema``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from phipipe.evaluate import answer_reports, reports
from phipipe.evaluate.reports import Report, Words
from phipipe.steps import Json


class File(Report):
    """A file by its content."""

    path: Words
    size: int
    sha256: Words


class Origin(Report):
    """A part of the original: a base, or the adapter that was merged into it."""

    kind: Words
    name: Words | None = None
    repo: Words | None = None
    revision: Words | None = None
    file: Words | None = None  # of the repository: a GGUF

    @property
    def title(self) -> str:
        """What it is called: of the hub's, the repository."""
        return self.name or str(self.repo)


class Source(Report):
    """Where the original is, and what it is; one that was made of two has ``base`` and
    ``adapter``."""

    kind: Words
    name: Words | None = None
    repo: Words | None = None
    revision: Words | None = None
    file: Words | None = None  # of the repository: a GGUF
    license: Words | None = None
    architecture: Words
    parameters: int
    context_length: int
    base: Origin | None = None
    adapter: Origin | None = None
    digest: Words
    files: Sequence[File] = Field(default_factory=list)
    widened_from: Words | None = None  # the format of a source that was quantized before

    @property
    def title(self) -> str:
        """What it is called: of the hub's, the repository."""
        return self.name or str(self.repo)


class Step(Report):
    """A step's record."""

    key: Words
    digest: Words
    tools: dict[Words, Words]
    params: dict[Words, Json] = Field(default_factory=dict)
    inputs: dict[Words, Words] = Field(default_factory=dict)
    outputs: Sequence[File] = Field(default_factory=list)
    runs: Words = ""
    version: int = 1
    toolchain: Words | None = None  # that it ran in; None: in none, or nobody wrote it down


class Fidelity(reports.Metrics):
    """How far the artifact is from the original."""

    baseline: reports.Scored
    change: reports.Change | None = None
    parity: reports.Parity | None = None
    vision: reports.Vision | None = None
    generation: answer_reports.AnswerFigures | None = None


class Device(Report):
    """The device, as far as it travels."""

    name: Words = ""
    title: Words
    architecture: Words | None = None
    sources: list[Words] = Field(default_factory=list)


class DataSet(Report):
    """Where a text comes from."""

    repo: Words


class Text(Report):
    """The evaluation text."""

    builtin: Words | None = None
    file: Words | None = None
    dataset: DataSet | None = None


class Evaluation(Report):
    """How the artifact was evaluated; ``accept`` names differences that were accepted."""

    text: Text = Text()
    accept: list[Words] = Field(default_factory=list)


class Recipe(Report):
    """Of the recipe, what is read without being built again; ``finished`` reads it whole."""

    backend: Words
    precision: Words
    device: Words = ""
    quantize: dict[Words, Json] = Field(default_factory=dict)
    evaluate: Evaluation = Evaluation()


class Template(Report):
    """The chat template: its hash, and what showed that it is the source's."""

    sha256: Words


class Licence(Report):
    """The original's licence: the hub's name of it, and its files; ``stated`` is what the recipe
    says."""

    id: Words | None = None
    stated: bool = False
    files: list[Words] = Field(default_factory=list)


class Fixup(Report):
    """What was changed in a copy of ``config.json``, and why."""

    reason: Words
    patch: dict[Words, Json] = Field(default_factory=dict)


class Distilled(Report):
    """The mean KL divergence from the original, in nats, before and after scales were trained, on
    tokens that nothing was learned from."""

    before: float
    after: float


class LearnedWeights(Report):
    """How weights were learned that several runtimes store, and the digest by which they are
    known."""

    learn: Words
    digest: Words
    distil: Distilled | None = None


class Description(Report):
    """The whole, with defaults for what the first packages did not have yet."""

    name: Words
    phipipe: Words
    backend: Words
    backend_title: Words
    precision: Words
    scheme: Words
    api: Words
    on_target: Literal["true", "emulated", "false"]
    device: Device
    recipe: Recipe
    source: Source
    fidelity: Fidelity
    speed: reports.Speed
    chat_template: Template | None = None
    steps: Mapping[Words, Step]
    licence: Licence = Licence()
    fixups: dict[Words, Fixup] = Field(default_factory=dict)
    warnings: list[Words] = Field(default_factory=list)
    gates: list[reports.Verdict] = Field(default_factory=list)
    twin: Words | None = None
    emulation: dict[Words, Json] | None = None
    weights: LearnedWeights | None = None

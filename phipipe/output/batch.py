"""What commands print of batches as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.errors import PhipipeError
from phipipe.output.documents import Error, error_of


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A metric that is worse than ``limit`` allows; ``after`` is null where it is not measured any
    more."""

    metric: str
    before: float
    after: float | None
    limit: float


@dataclass(frozen=True, kw_only=True)
class BatchError(Error):
    """As ``Error``; ``exit_code`` is the same as ``code``."""

    exit_code: int


@dataclass(frozen=True, kw_only=True)
class BatchBuild:
    """What became of one build. ``device``, ``backend`` and ``precision`` are null where its recipe
    cannot be read."""

    name: str
    recipe: str
    device: str | None
    backend: str | None
    precision: str | None
    state: str
    seconds: float
    digest: str | None
    version: str | None
    package: str | None
    accepted: str | None
    size_bytes: int | None
    metrics: dict[str, float]
    before: dict[str, float]
    compared: list[str]
    regressions: list[Regression]
    error: BatchError | None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The content of ``batch.json``."""

    type: str
    format: int
    version: str
    started: str
    finished: str
    exit_code: int
    states: dict[str, int]
    recipes: list[str]
    builds: list[BatchBuild]


@dataclass(frozen=True, kw_only=True)
class ForeseenBuild:
    """What a batch would do for one build. ``cached``: nothing is left to do. ``unknown`` names the
    steps that ``seconds`` leaves out. ``error``: why it would be refused."""

    name: str
    recipe: str
    device: str | None
    backend: str | None
    precision: str | None
    cached: bool
    steps: int
    steps_to_run: int
    output_bytes: int
    memory_bytes: int
    seconds: float | None
    unknown: list[str]
    error: BatchError | None


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What ``--dry-run`` says of a batch; steps that builds share count once in the sums.
    ``output_bytes``: what is written; ``peak_disk_bytes``: the most that is there at once."""

    dry_run: bool
    builds: list[ForeseenBuild]
    steps_to_run: int
    output_bytes: int
    peak_disk_bytes: int
    memory_bytes: int
    seconds: float | None
    unknown: list[str]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class File:
    """A file's content; ``path`` is where it was written, or how it is called."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Files that start a batch on time; ``written`` tells whether they were written to ``path``."""

    kind: str
    written: bool
    builds: int
    files: list[File]


def batch_error_of(error: PhipipeError) -> BatchError:
    """``error`` as data of a batch."""
    return BatchError(**vars(error_of(error)), exit_code=error.exit_code)

"""What `tune` prints as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Point:
    """A size, and the mean KL divergence that is predicted for it, in nats."""

    size_bytes: int
    kld_mean: float


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that was built: ``what`` it is, its figures on the text to choose by, and what was
    predicted before; null for the recipe as it stands, whose widths are the backend's. ``refusal``:
    why it was not taken whatever its figures, empty where nothing speaks against it."""

    what: str
    size_bytes: int
    metrics: dict[str, float]
    predicted_kld_mean: float | None
    best: bool
    refusal: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """Noise in one matrix: the mean KL divergence that was predicted, and the one measured."""

    matrix: str
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A build whose widths were chosen: ``limit_bytes`` is null where gates decide; ``quantize``:
    what the new recipe says; ``metrics``: on the recipe's own text; ``curve``: predicted."""

    name: str
    backend: str
    limit_bytes: int | None
    quantize: dict[str, Json]
    metrics: dict[str, float]
    stderr: dict[str, float]
    files: list[File]
    curve: list[Point]
    checks: list[Check]
    recipe: str
    page: str

"""What a manifest may say of the windows that were scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from phipipe.evaluate import reports, sampling
from phipipe.package.bounds import Count, Figure, Key, Line, Part

MAX_WINDOWS = 10_000


class Sampling(Part, reports.Sampling):
    """Which windows were scored, and how well each."""

    tokens: Count
    cap: Count
    reason: Line
    relative_error: Figure | None = None
    windows: Annotated[list[Count], Field(min_length=1, max_length=MAX_WINDOWS)]
    figures: dict[Key, Annotated[list[Figure], Field(max_length=MAX_WINDOWS)]]

    @model_validator(mode="after")
    def _has_figures_of_each(self) -> Sampling:
        if problem := sampling.problem(self):
            raise ValueError(problem)
        return self

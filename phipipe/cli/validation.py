"""What ``phipipe validate`` says of a recipe, as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe.errors import PhipipeError
from phipipe.output import documents
from phipipe.recipe.build import Build


def told(path: Path, builds: Sequence[Build], error: PhipipeError | None) -> documents.Validated:
    """What `validate` found in one file."""
    return documents.Validated(
        recipe=str(path),
        ok=error is None,
        builds=[
            documents.Build(
                name=build.name,
                device=build.recipe.device,
                unit=build.recipe.unit,
                backend=build.recipe.backend,
                precision=build.recipe.precision,
            )
            for build in builds
        ],
        problems=documents.problems_of(error, str(path)) if error else [],
    )

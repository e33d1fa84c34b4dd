"""What ``phipipe validate`` says of a recipe, as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe import output
from phipipe.build import Build
from phipipe.errors import PhipipeError


def told(path: Path, builds: Sequence[Build], error: PhipipeError | None) -> output.Validated:
    """What `validate` found in one file."""
    return output.Validated(
        recipe=str(path),
        ok=error is None,
        builds=[
            output.Build(
                name=build.name,
                device=build.recipe.device,
                unit=build.recipe.unit,
                backend=build.recipe.backend,
                precision=build.recipe.precision,
            )
            for build in builds
        ],
        problems=output.problems_of(error, str(path)) if error else [],
    )

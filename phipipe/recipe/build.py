"""One recipe to build: a variant of a matrix merged in, its options validated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from phipipe.errors import RecipeError, TargetError
from phipipe.recipe import addresses
from phipipe.recipe.places import Where
from phipipe.recipe.recipe import Recipe
from phipipe.suggestions import shorten


@dataclass(frozen=True)
class Build:
    """One recipe to build: a variant of a matrix has been merged in, ``options`` validated.
    ``written`` are the recipe's keys that somebody wrote, `none` as well."""

    name: str
    recipe: Recipe
    folder: Path
    options: BaseModel | None
    locate: Callable[[Sequence[Where], str], RecipeError] = field(
        default=lambda places, message: RecipeError(message), compare=False
    )
    written: frozenset[str] = field(default=frozenset(), compare=False)


def paths_of(recipe: Recipe) -> list[tuple[Where, str]]:
    """Paths of the user's that ``recipe`` names, and where it does."""
    learned = recipe.calibrate.text.file if recipe.calibrate.text else None
    asked = recipe.evaluate.generate.prompts.file if recipe.evaluate.generate else None
    sign = recipe.package.sign
    named: list[tuple[Where, str | None]] = [
        *((("source", *where), path) for where, path in recipe.source.paths.items()),
        (("evaluate", "text", "file"), recipe.evaluate.text.file),
        (("evaluate", "generate", "prompts", "file"), asked),
        (("calibrate", "text", "file"), learned),
        (("package", "sign", "key", "file"), sign.key.file if sign else None),
        (("package", "sign", "certificate"), sign.certificate if sign else None),
        *(
            (("package", "sign", "chain", i), text)
            for i, text in enumerate(sign.chain if sign else ())
        ),
        (("device",), recipe.device if recipe.device.endswith((".yaml", ".yml")) else None),
    ]
    return [(where, text) for where, text in named if text is not None]


def one_address(builds: Sequence[Build]) -> str | None:
    """Why ``builds`` cannot be published, in words; None where each has addresses of its own."""
    texts = [text for build in builds for text in build.recipe.publish]
    same = addresses.clash(texts, [build.name for build in builds])
    if same is None:
        return None
    return (
        f"`{shorten(same)}` is the address of {len(builds)} builds; write `{{name}}` or "
        f"`{{digest}}` in it"
    )


def problem_at(
    build: Build, where: Where, message: str, hint: str | None = None, *others: Where
) -> TargetError:
    """A TargetError that points at the place in the recipe that ``message`` speaks of.

    Where ``others`` have a part in it as well, the one that decides is shown: what the command line
    says, else what the variant says, else what is written at all.
    """
    error = build.locate((where, *others), message)
    return TargetError(error.message, hint=hint, problems=error.problems)

"""What the words of ``phipipe diff`` name: recipes, packages or runs; both sides the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phipipe.batch import folder
from phipipe.diff import packages, recipes, runs
from phipipe.errors import RecipeError, SourceError
from phipipe.execution import past_runs
from phipipe.execution.past_runs import Run
from phipipe.files import user_paths
from phipipe.output.diff import Difference
from phipipe.package import manifest
from phipipe.store.store import Store


@dataclass(frozen=True)
class Side:
    """A word of the user's, what it is, and the path that it stands for."""

    word: str
    kind: str
    path: Path


def compare(before: str, after: str | None, store: Store) -> Difference:
    """What changed between two sides; with one alone, between the last two versions of a batch's
    build.

    Raises:
        RecipeError: they are of different kinds, or a recipe is wrong.
        SourceError: a side is nothing that can be compared.
    """
    if after is None:
        return packages.compare(*packages.versions(Path(before)))
    old, new = _side(before), _side(after)
    if old.kind != new.kind:
        for side in (old, new):
            if side.kind == "run" and side.word != past_runs.LATEST:
                _run(side, store)
        raise RecipeError(
            f"`{_shown(old)}` is a {old.kind}, `{_shown(new)}` a {new.kind}",
            hint="compare two recipes, two packages, or two runs (`phipipe runs ls`)",
        )
    if old.kind == "recipe":
        return recipes.compare(old.path, new.path)
    if old.kind == "package":
        return packages.compare(old.path, new.path)
    return runs.compare(_run(old, store), _run(new, store), store)


def _run(side: Side, store: Store) -> Run:
    """The run that ``side`` names, or why nothing else can be meant."""
    try:
        return past_runs.find(store.root, side.word)
    except SourceError as error:
        if side.word == past_runs.LATEST:
            raise
        raise SourceError(
            f"`{_shown(side)}` is no file or folder, and {error.message}",
            hint="phipipe runs ls, or name two recipes or two packages",
        ) from None


def _side(word: str) -> Side:
    """A folder is a package, or a batch's build with the version accepted last; a file, or what
    ends like one, is a recipe; all else names a run.

    Raises:
        RecipeError: ``word`` is empty.
    """
    if not word.strip():
        raise RecipeError("one side is empty", hint="name a recipe, a package or a run")
    path = Path(word)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long; a NUL
        is_folder = is_file = False
    if is_folder:
        version = folder.latest(path)
        inner = path / version if version and not (path / manifest.NAME).exists() else path
        return Side(word, "package", inner)
    is_path = len(path.parts) > 1 or word.lower().endswith((".yaml", ".yml"))
    return Side(word, "recipe" if is_file or is_path else "run", path)


def _shown(side: Side) -> str:
    return user_paths.shown(side.word)

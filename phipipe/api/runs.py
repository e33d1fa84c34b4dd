"""A recipe is built from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe.api import building, workplace
from phipipe.api.building import Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.recipes import Recipe, Sets
from phipipe.api.results import Results
from phipipe.api.workplace import Names, UserPath, path_of
from phipipe.errors import SourceError
from phipipe.execution.results import Outcome
from phipipe.files.user_paths import Kind

PACKAGES = "packages"  # where packages go unless told otherwise


def run(
    recipe: Recipe | UserPath,
    on_progress: OnProgress | None = None,
    *,
    out: UserPath = PACKAGES,
    sets: Sets = (),
    only: Names = (),
    jobs: int | None = None,
    on: str | None = None,
    publish: bool = True,
) -> Results:
    """Build, evaluate and package what a recipe describes; what is stored is not done again.

    Ctrl-C keeps what was finished. Of several builds, one that fails leaves the others: its result
    has the ``error``, and ``results.check()`` raises it.

    Args:
        recipe: a recipe, or the path of its file.
        on_progress: gets an ``Event`` for all that happens; ``phipipe.Progress()`` shows them.
        out: the folder for packages; each gets a folder named like its build.
        sets: values that replace those of the recipe's file, for all variants.
        only: names of the variants wanted; all of them without it.
        jobs: steps side by side; without it as many as cores and memory allow.
        on: a Dask scheduler whose workers do the steps, such as ``dask://localhost:8786``.
        publish: whether packages go where the recipe publishes them.

    Raises:
        RecipeError, TargetError, SourceError: wrong recipe, device or source.
        StepKilled, StoreError: this machine has too little memory or disk.
        PhipipeError: the only build failed.
    """
    workplace.check_count(jobs, "jobs")
    folder = path_of(out, Kind.NEW_FOLDER, "the folder for packages")
    listener = Telling(on_progress)
    place = workplace.of_user(listener.note)
    where = Where(out=folder, jobs=jobs, on=on, publishes=publish)
    plans = building.planned(recipe, listener.note, sets=sets, only=only, on=on)
    building.check_room(plans, place, where, listener.note)
    outcomes = building.attempt("run", plans, place, listener.audience, where)
    return Results(outcomes).check() if len(outcomes) == 1 else _with_board(outcomes, out, listener)


def _with_board(outcomes: Sequence[Outcome], out: UserPath, listener: Telling) -> Results:
    from phipipe.api import run_boards

    try:
        _, page = run_boards.write_board(outcomes, Path(out))
    except SourceError as error:  # variants may be evaluated on different texts on purpose
        listener.note(f"no board: {error.message}")
        return Results(outcomes)
    return Results(outcomes, page)

"""The widths of a recipe's matrices are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.api import building, workplace
from phipipe.api.building import Audience, Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.recipes import Recipe, Sets
from phipipe.api.workplace import Names, Note, UserPath, Workplace, path_of
from phipipe.errors import RecipeError
from phipipe.execution.results import Outcome
from phipipe.files import new_files
from phipipe.files.user_paths import Kind
from phipipe.output import documents
from phipipe.output import tuned as output
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.steps import Json
from phipipe.store import free_space, refusals
from phipipe.tuning import aims, page, recipe_text, tuner
from phipipe.tuning.aims import Aim
from phipipe.tuning.results import Trial, Tuned
from phipipe.visible import visible

FILES = 4  # that are built for a recipe's build, at most, unless told otherwise
PAGE = ".html"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is spent on a build: so many ``files``, and whether the best one answers prompts."""

    files: int = FILES
    answers: bool = True


class Tuning:
    """Widths that were chosen for the matrices of a recipe's builds.

    ``print(tuning)`` shows what was measured.

    Attributes:
        builds: for each build ``quantize``, the options with the map; ``best`` of the ``trials``
            that were built; ``metrics`` on the recipe's own evaluation text.
    """

    def __init__(self, builds: Sequence[Tuned], command: str) -> None:
        """Of ``builds``, which ``command`` chose widths for."""
        self.builds, self._command = tuple(builds), command

    def write(self, path: UserPath) -> Path:
        """Write the recipe ``path``, and the page of the same name beside it.

        Returns:
            The page's path.

        Raises:
            RecipeError: one of them is there already, or cannot be written.
            StoreError: there is no room.
        """
        target = path_of(path, Kind.NEW_FILE, "the recipe")
        check_new(target)
        drawn = page_of(target)
        with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
            text = recipe_text.compose(self.builds, target.parent, self._command)
            new_files.create(target, text)
            new_files.create(drawn, page.render(self.builds, self._command))
        return drawn

    def to_dict(self, recipe: str = "", page: str = "") -> list[Json]:
        """The same as ``phipipe tune --json`` prints it; ``recipe`` and ``page`` are the files."""
        return [documents.plain(_document(one, recipe, page)) for one in self.builds]

    def __repr__(self) -> str:
        return f"<Tuning {', '.join(one.build.name for one in self.builds)}>"

    def __str__(self) -> str:
        every = ("\n".join(recipe_text.evidence(one)).strip() for one in self.builds)
        return visible("\n\n".join(every))


def tune(
    recipe: Recipe | UserPath,
    on_progress: OnProgress | None = None,
    *,
    size: str | None = None,
    bits: float | None = None,
    gates: bool = False,
    builds: int = FILES,
    answers: bool = True,
    sets: Sets = (),
    only: Names = (),
) -> Tuning:
    """Choose the bits of each matrix under a budget, and prove the choice on files.

    Without ``size``, ``bits`` and ``gates`` a file may be as large as the recipe's own is.

    Args:
        recipe: a recipe, or the path of its file.
        on_progress: gets an ``Event`` for all that happens; ``phipipe.Progress()`` shows them.
        size: the largest file, such as "2.2GiB".
        bits: the same as bits for each weight.
        gates: the smallest file that passes the recipe's gates.
        builds: files that are built to choose by, at most.
        answers: whether the chosen file answers prompts beside the original.
        sets: values that replace those of the recipe's file, for all variants.
        only: names of the variants wanted; all of them without it.

    Raises:
        RecipeError, TargetError, SourceError: the recipe is wrong, nothing can be chosen, no choice
            reaches the aim, or the model cannot be had.
        PhipipeError: a step failed.
    """
    workplace.check_count(builds, "builds")
    aim = aim_of(size, bits, gates=gates, builds=builds)
    read = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, sets, only)
    listener = Telling(on_progress)
    place = workplace.of_user(listener.note)
    effort = Effort(files=builds, answers=answers)
    tuned = tune_builds(read.builds, aim, effort, place, listener.audience, listener.note)
    return Tuning(tuned, "phipipe.tune")


def tune_builds(
    builds: Sequence[Build],
    aim: Aim,
    effort: Effort,
    place: Workplace,
    audience: Audience,
    note: Note,
) -> list[Tuned]:
    """The best widths for each of ``builds``.

    Raises:
        PhipipeError: as ``tune``.
    """

    def attempt(plan: Plan) -> Outcome:
        building.check_room([plan], place, Where(), note)
        (outcome,) = building.attempt("tune", [plan], place, audience, Where())
        if outcome.error is not None:
            raise outcome.error
        return outcome

    return [
        tuner.tuned(one, attempt, aim, effort.files, answers=effort.answers, note=note)
        for one in builds
    ]


def aim_of(size: str | None, bits: float | None, *, gates: bool, builds: int) -> Aim:
    """What is asked for.

    Raises:
        RecipeError: more than one thing, a size that is none, or more than one file can show.
    """
    given = [f"`{name}`" for name, value in zip(_AIMS, (size, bits, gates), strict=True) if value]
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} exclude each other", hint="give one of them")
    if not given and builds == 1:
        raise RecipeError(
            "one build leaves no file to compare the recipe's own with",
            hint="allow 2, or say how large the file may be: size, bits or gates",
        )
    return Aim(size_bytes=None if size is None else aims.size_of(size), bits=bits, by_gates=gates)


_AIMS = ("size", "bits", "gates")


def page_of(recipe: Path) -> Path:
    """Where the page of the tuned ``recipe`` lies."""
    return recipe.with_suffix(PAGE)


def check_new(recipe: Path) -> None:
    """Refuse to write over what is there, before anything is built.

    Raises:
        RecipeError: the recipe or its page is there.
    """
    for path in (recipe, page_of(recipe)):
        if path.exists():
            raise RecipeError(f"`{path}` is there already", hint="name another file, or move it")


def _document(tuned: Tuned, recipe: str, page: str) -> output.Tuned:
    return output.Tuned(
        name=tuned.build.name,
        backend=tuned.build.recipe.backend,
        limit_bytes=tuned.limit_bytes,
        quantize=dict(tuned.quantize),
        metrics=tuned.metrics.metrics,
        stderr=tuned.metrics.stderr,
        files=[_file(trial, best=trial is tuned.best) for trial in tuned.trials],
        curve=list(_curve(tuned)),
        checks=[
            output.Check(matrix=one.name, predicted=one.predicted, measured=one.measured)
            for one in tuned.checks
        ],
        recipe=recipe,
        page=page,
    )


def _file(trial: Trial, *, best: bool) -> output.File:
    return output.File(
        what=trial.what,
        size_bytes=trial.size_bytes,
        metrics=dict(trial.metrics),
        predicted_kld_mean=trial.predicted_kld,
        best=best,
    )


def _curve(tuned: Tuned) -> Iterator[output.Point]:
    for size_bytes, kld in tuned.predicted():
        yield output.Point(size_bytes=size_bytes, kld_mean=kld)

"""The widths of a recipe's matrices are chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe import failures
from phipipe.api import building, workplace
from phipipe.api.building import Audience, Where
from phipipe.api.events import OnProgress, Telling
from phipipe.api.recipes import Recipe, Sets, opened, texts_of
from phipipe.api.workplace import Names, Note, UserPath, Workplace, path_of
from phipipe.errors import GateFailed, Interrupted, PhipipeError, RecipeError
from phipipe.execution.keeping import keeping_all
from phipipe.execution.results import Outcome
from phipipe.files import new_files
from phipipe.files.user_paths import Kind
from phipipe.output import documents
from phipipe.output import tuned as output
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.steps import Json
from phipipe.store import free_space, refusals
from phipipe.tuning import aims, page, recipe_text
from phipipe.tuning.aims import Aim
from phipipe.tuning.results import Trial, Tuned
from phipipe.tuning.tuner import Attempt, Tuner
from phipipe.visible import visible

FILES = 4  # that are built for a recipe's build, at most, unless told otherwise
PAGE = ".html"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is spent on a build: so many ``files``, and whether the best one answers prompts."""

    files: int = FILES
    answers: bool = True


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a choice comes from: the ``command``, as its recipe repeats it, and the ``name`` of
    that recipe."""

    name: str
    command: str = "phipipe.tune"


class Tuning:
    """Widths that were chosen for the matrices of a recipe's builds.

    ``print(tuning)`` shows what was measured.

    Attributes:
        builds: for each build ``quantize``, the options with the map; ``best`` of the ``trials``
            that were built; ``metrics`` on the recipe's own evaluation text; ``failed``, the
            recipe's gates that it does not pass, in words.
        errors: why no widths were chosen for others, by their builds' names.
    """

    def __init__(
        self, builds: Sequence[Tuned], origin: Origin, errors: Mapping[str, PhipipeError]
    ) -> None:
        """Of ``builds``, which ``origin`` chose widths for."""
        self.builds, self._origin, self.errors = tuple(builds), origin, dict(errors)

    def check(self) -> Tuning:
        """This choice, if nothing failed.

        Raises:
            GateFailed: a build was to pass its gates, and does not on the evaluation text.
            PhipipeError: why no widths were chosen for a build.
        """
        if self.errors:
            raise failures.as_one(list(self.errors.values()))
        for one in self.builds:
            if one.aim.by_gates and one.failed:
                raise GateFailed(
                    f"{one.build.name}: on the evaluation text {'; '.join(one.failed)}",
                    hint="the recipe is written all the same; ask for a little more than the "
                    "gates do, or loosen them",
                )
        return self

    def write(self, path: UserPath) -> Path:
        """Write the recipe ``path``, and the page of the same name beside it.

        Returns:
            The page's path.

        Raises:
            RecipeError: one of them is there already, or cannot be written.
            StoreError: there is no room.
        """
        target = path_of(path, Kind.NEW_FILE, "the recipe")
        check_target(target)
        drawn = page_of(target)
        with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
            origin = self._origin
            text = recipe_text.compose(self.builds, origin.name, target.parent, origin.command)
            new_files.create(target, text)
            new_files.create(drawn, page.render(self.builds, origin.command))
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
        answers: whether the chosen file answers prompts; one that alone loops is refused.
        sets: values that replace those of the recipe's file, for all variants.
        only: names of the variants wanted; all of them without it.

    Raises:
        RecipeError, TargetError, SourceError: the recipe is wrong, nothing can be chosen, no choice
            reaches the aim, or the model cannot be had.
        PhipipeError: a step failed.
    """
    workplace.check_count(builds, "builds")
    aim = aims.asked(size, bits, gates=gates, builds=builds)
    listener, effort = Telling(on_progress), Effort(files=builds, answers=answers)
    place = workplace.of_user(listener.note)
    changes = texts_of(sets)
    every = opened(recipe, changes, only).builds
    origin = Origin(name=recipe_text.name_of(every, changes))
    return tune_builds(every, aim, effort, place, listener.audience, listener.note, origin)


def tune_builds(
    builds: Sequence[Build],
    aim: Aim,
    effort: Effort,
    place: Workplace,
    audience: Audience,
    note: Note,
    origin: Origin,
) -> Tuning:
    """The best widths for ``builds``, which ``origin`` asks for. What can be known before a step
    runs is known of all of them before one does.

    Raises:
        PhipipeError: what is wrong with any of them before that, or with all of them after.
    """
    attempt = _attempting(place, audience, note)
    wrong: list[PhipipeError] = []
    tuners: dict[str, Tuner] = {}
    for one in builds:
        try:
            tuners[one.name] = Tuner(one, attempt, aim, effort.files, note)
        except PhipipeError as error:
            wrong.append(error)
    if wrong:
        raise failures.as_one(wrong)
    done: list[Tuned] = []
    errors: dict[str, PhipipeError] = {}
    for name, tuner in tuners.items():
        try:
            done.append(tuner.run(answers=effort.answers))
        except Interrupted:
            raise
        except PhipipeError as error:
            errors[name] = error
    made = Tuning(done, origin, errors)
    return made if done else made.check()


def _attempting(place: Workplace, audience: Audience, note: Note) -> Attempt:
    def attempt(plan: Plan) -> Outcome:
        kept = keeping_all(plan)  # files that are tried share what they are made of
        building.check_room([kept], place, Where(), note)
        (outcome,) = building.attempt("tune", [kept], place, audience, Where())
        if outcome.error is not None:
            raise outcome.error
        return outcome

    return attempt


def page_of(recipe: Path) -> Path:
    """Where the page of the tuned ``recipe`` lies."""
    return recipe.with_suffix(PAGE)


def check_target(recipe: Path) -> None:
    """Refuse a place where recipe and page cannot be written, or are already: before anything is
    built.

    Raises:
        RecipeError: says why.
    """
    if recipe.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"`{recipe}` is no name of a recipe", hint="end it in .yaml (--write)")
    folder = recipe.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "cannot be written" if folder.is_dir() else "is no folder"
        raise RecipeError(f"`{folder}` {why}", hint="name a file in another folder with --write")
    for path in (recipe, page_of(recipe)):
        if path.exists():
            raise RecipeError(
                f"`{path}` is there already", hint="name another file with --write, or move it"
            )


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
        refusal=trial.refusal,
    )


def _curve(tuned: Tuned) -> Iterator[output.Point]:
    for size_bytes, kld in tuned.predicted():
        yield output.Point(size_bytes=size_bytes, kld_mean=kld)

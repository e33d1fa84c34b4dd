"""The widths of a recipe's matrices are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phipipe.api import building
from phipipe.api.building import Audience, Where
from phipipe.api.workplace import Note, Workplace
from phipipe.execution.results import Outcome
from phipipe.output import tuned as documents
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.tuning import recipe_text, tuner
from phipipe.tuning.aims import Aim
from phipipe.tuning.results import Trial, Tuned

FILES = 4  # that are built for a recipe's build, at most, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is spent on a build: so many ``files``, and whether the best one answers prompts."""

    files: int = FILES
    answers: bool = True


def tune(
    builds: Sequence[Build],
    aim: Aim,
    effort: Effort,
    place: Workplace,
    audience: Audience,
    note: Note,
) -> list[Tuned]:
    """The best widths for each of ``builds``.

    Raises:
        TargetError: nothing can be chosen, or no choice reaches the aim.
        PhipipeError: as ``preparation.prepare``; or a step failed.
    """

    def attempt(plan: Plan) -> Outcome:
        building.check_room([plan], place, Where(), note)
        (outcome,) = building.attempt("tune", [plan], place, audience, Where())
        if outcome.error is not None:
            raise outcome.error
        return outcome

    return [tuner.tuned(one, attempt, aim, effort.files, answers=effort.answers) for one in builds]


def describe(tuned: Tuned) -> str:
    """What was measured, for a terminal."""
    return "\n".join(line.rstrip() for line in recipe_text.evidence(tuned)).strip()


def document(tuned: Tuned, recipe: str, page: str) -> documents.Tuned:
    """The same for programs; ``recipe`` and ``page`` are the files that were written."""
    return documents.Tuned(
        name=tuned.build.name,
        backend=tuned.build.recipe.backend,
        limit_bytes=tuned.limit_bytes,
        quantize=dict(tuned.quantize),
        metrics=tuned.metrics.metrics,
        stderr=tuned.metrics.stderr,
        files=[_file(trial, best=trial is tuned.best) for trial in tuned.trials],
        curve=list(_curve(tuned)),
        checks=[
            documents.Check(matrix=one.name, predicted=one.predicted, measured=one.measured)
            for one in tuned.checks
        ],
        recipe=recipe,
        page=page,
    )


def _file(trial: Trial, *, best: bool) -> documents.File:
    return documents.File(
        what=trial.what,
        size_bytes=trial.size_bytes,
        metrics=dict(trial.metrics),
        predicted_kld_mean=trial.predicted_kld,
        best=best,
    )


def _curve(tuned: Tuned) -> Iterator[documents.Point]:
    for size_bytes, kld in tuned.predicted():
        yield documents.Point(size_bytes=size_bytes, kld_mean=kld)

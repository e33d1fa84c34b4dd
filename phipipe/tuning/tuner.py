"""A build's widths, chosen under a budget and proven on files: predict, build a few, correct,
choose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from phipipe import backends
from phipipe.algorithms import sensitivity
from phipipe.errors import TargetError
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reports import Metrics
from phipipe.execution.results import Outcome
from phipipe.planning import preparation, tuning, usual
from phipipe.planning.plan import Plan
from phipipe.planning.plans import ReadOnce
from phipipe.planning.tuning import Group
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.recipe import Generate
from phipipe.steps import Json
from phipipe.tuning import curve as curves
from phipipe.tuning import ends, maps
from phipipe.tuning.aims import Aim
from phipipe.tuning.curve import Choice, Curve, Option, Point
from phipipe.tuning.fit import Fit, Measured
from phipipe.tuning.results import (
    AS_IT_STANDS,
    CHOSEN,
    SMALLEST,
    Check,
    Trial,
    Tuned,
    looping,
    verdicts,
)
from phipipe.words import human

Attempt = Callable[[Plan], Outcome]
"""Does the steps of a plan; raises what fails."""
GAIN = 0.01  # of the loss: for less, what is left of a budget is not worth another file
CLOSE = 0.9  # a file this near to a gate, from below, is as small as it gets


class Tuner:
    """The choice of widths for ``build``, on at most so many files that are ``builds``; ``note``
    hears which file comes next.

    Raises:
        TargetError: nothing can be chosen, or no choice reaches the aim. No step has run.
        PhipipeError: as ``preparation.prepare``.
    """

    def __init__(
        self,
        build: Build,
        attempt: Attempt,
        aim: Aim,
        builds: int,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._attempt, self._aim, self._left = attempt, aim, builds
        self._builds, self._note = builds, note
        self._read = ReadOnce()
        self._plan = preparation.prepare(build, self._read)
        self._build = build = usual.settled(build, self._plan.whole, preparation.outlined)
        self._job = preparation.job_of(build, self._plan.whole)
        self._scope = tuning.scope(build, self._job)
        self._limit = aim.limit_bytes(self._plan.whole.parameters)
        self._gate = self._kld_gate() if aim.by_gates else math.inf
        self._check_reachable(self._scope.smallest_bytes, self._scope.beside_bytes)
        self._sensing = tuning.sensing(self._plan, self._job, self._scope)
        self._trials: list[Trial] = []

    def run(self, *, answers: bool) -> Tuned:
        """The best widths.

        Raises:
            TargetError: no choice reaches the aim.
            PhipipeError: a step failed.
        """
        self._tell("what an error in each matrix costs")
        self._sensed = self._attempt(self._sensing)
        if self._aim.as_today:
            self._limit = self._try(None, AS_IT_STANDS).size_bytes
        if self._left > 1:
            self._check_reachable(self._try(self._curve.smallest, SMALLEST).size_bytes)
        while self._left and self._choose():
            pass
        if self._left and not self._aim.as_today:
            self._try(None, AS_IT_STANDS)
        best, final = self._proven(answers)
        return Tuned(
            build=self._build,
            aim=self._aim,
            limit_bytes=self._limit,
            base_bytes=self._scope.base_bytes,
            curve=self._curve,
            fit=self._fit,
            checks=self._checks,
            trials=tuple(self._trials),
            best=best,
            quantize=self._quantize(best.choice),
            final=final,
        )

    def _tell(self, what: str) -> None:
        self._note(f"{self._build.name}: {what}")

    # What is known before a file is built

    @cached_property
    def _curve(self) -> Curve:
        path = self._sensed.results["codec-errors"].stored.path / sensitivity.ERRORS
        losses: Mapping[str, Mapping[str, float]] = json.loads(path.read_text("utf-8"))
        groups = self._scope.groups.items()
        return Curve({name: list(_options(group, losses)) for name, group in groups})

    @cached_property
    def _checks(self) -> list[Check]:
        path = self._sensed.results["sensitivity"].stored.path / sensitivity.CHECKS
        return [Check(**one) for one in json.loads(path.read_text("utf-8"))["checks"]]

    @property
    def _fit(self) -> Fit:
        files = [
            Measured(predicted=one.predicted, size_bytes=one.size_bytes, kld=one.kld)
            for one in self._trials
            if one.predicted
        ]
        told = [check for check in self._checks if min(check.predicted, check.measured) > 0]
        logs = [math.log(check.measured / check.predicted) for check in told]
        return Fit(files, math.exp(sum(logs) / len(logs)) if logs else 1.0)

    def _point(self, choice: Choice) -> Point:
        found = curves.point(choice)
        return replace(found, size_bytes=found.size_bytes + self._scope.base_bytes)

    # Files

    def _try(self, choice: Choice | None, what: str) -> Trial:
        """Build a file and score it; None is the recipe as it stands."""
        predicted = self._point(choice) if choice else None
        expected = self._fit.kld(predicted.loss) if predicted else None
        self._tell(f"file {self._builds - self._left + 1} of at most {self._builds}, {what}")
        scored = self._attempt(tuning.trial(self._planned(choice))).load("evaluate", Metrics)
        assert scored is not None
        self._left -= 1
        trial = Trial(
            what=what,
            choice=choice,
            predicted=predicted,
            predicted_kld=expected,
            metrics=scored.metrics,
            stderr=scored.stderr,
        )
        self._trials.append(trial)
        return trial

    def _planned(self, choice: Choice | None, answers: bool = False) -> Plan:
        recipe = self._build.recipe
        build = self._build
        if choice is not None:
            quantize = self._quantize(choice)
            options = backends.load(recipe.backend).options.model_validate(quantize)
            recipe = recipe.model_copy(update={"quantize": quantize})
            build = replace(build, recipe=recipe, options=options)
        if answers and recipe.evaluate.generate is None:
            evaluate = recipe.evaluate.model_copy(update={"generate": Generate.model_validate({})})
            recipe = recipe.model_copy(update={"evaluate": evaluate})
            build = replace(build, recipe=recipe)
        return preparation.prepare(build, self._read)

    def _quantize(self, choice: Choice | None) -> dict[str, Json]:
        """The recipe's options with the map in place of what it replaces."""
        given = self._build.recipe.quantize
        if choice is None:
            return dict(given)
        stores = backends.load(self._build.recipe.backend).stores
        assert stores is not None
        kept = {key: value for key, value in given.items() if key not in (*stores.presets, "map")}
        widths = {name: option.stored for name, option in choice.items()}
        return {**kept, "map": maps.patterns(widths)}

    def _final(self, best: Trial, answers: bool) -> Outcome:
        """The best file on the recipe's own evaluation text, with answers where they are wanted."""
        self._tell("the best file on the recipe's own text")
        plan = replace(self._planned(best.choice, answers), warnings=())
        names = ["evaluate", *(step.name for step in plan.steps if step.name == "answers")]
        return self._attempt(replace(plan, steps=tuple(tuning.needed(plan.steps, *names))))

    def _proven(self, answers: bool) -> tuple[Trial, Outcome]:
        """The best file, and what it comes to in the end. One whose answers loop is refused, and
        the next best takes its place."""
        while True:
            best = self._best()
            final = self._final(best, answers)
            lines = looping(self._build.recipe, final.load("answers", Answers))
            if not lines:
                return best, final
            refused = replace(best, looping=lines)
            self._trials[self._trials.index(best)] = refused
            self._tell(f"that file ({refused.what}) is refused: {refused.refusal}")
            while self._left and self._choose():
                pass

    # Which file is next

    def _choose(self) -> bool:
        """Build the file that looks best by now; False if none is worth it."""
        choice = self._next()
        if choice is None or any(trial.choice == choice for trial in self._trials):
            return False
        self._try(choice, CHOSEN)
        return True

    def _next(self) -> Choice | None:
        if self._limit is None:
            return self._next_by_gates()
        budget = self._limit - self._scope.base_bytes
        choice = self._curve.within(budget)
        for _ in range(2):  # what lies beside depends on where
            if choice is None:
                return None
            choice = self._curve.within(budget - self._fit.beside(self._point(choice)))
        done = self._within()
        if choice and done and done.predicted:
            enough = (1 - GAIN) * done.predicted.loss
            return choice if self._point(choice).loss < enough else None
        return choice

    def _within(self) -> Trial | None:
        """The best file chosen so far that is not too large."""
        assert self._limit is not None
        fitting = [t for t in self._trials if t.what == CHOSEN and t.size_bytes <= self._limit]
        return min(fitting, key=lambda trial: trial.kld, default=None)

    def _next_by_gates(self) -> Choice | None:
        passing = [trial for trial in self._trials if self._passes(trial)]
        if any(trial.kld >= CLOSE * self._gate or trial.what == SMALLEST for trial in passing):
            return None
        goal = self._gate * (CLOSE + 1) / 2
        for trial in self._trials:  # within its divergence, and stopped by another gate
            if trial.kld <= self._gate and not self._passes(trial):
                goal = min(goal, 0.8 * trial.kld)
        return self._curve.reaching(self._fit.loss(goal)) or self._curve.closest

    def _passes(self, trial: Trial) -> bool:
        """Whether it is not refused, and within all gates on what a trial measures."""
        if trial.refusal:
            return False
        judged = verdicts(self._build.recipe, trial.metrics)
        return all(one.passed for one in judged if one.value is not None)

    # Ends

    def _kld_gate(self) -> float:
        gate = self._build.recipe.evaluate.gates.get("kld_mean")
        if gate is None or gate.max is None:
            message = "no gate says how far a file may be: `kld_mean` has no `max`"
            hint = "add `evaluate: {gates: {kld_mean: {max: 0.1}}}`, or give --size"
            raise problem_at(self._build, ("evaluate", "gates"), message, hint, ("evaluate",))
        return gate.max

    def _check_reachable(self, smallest_bytes: int, beside_bytes: int = 0) -> None:
        """Refuse a size that no choice of widths gets to: no file that was built, or no weights
        alone, with ``beside_bytes`` at most in their file beside them."""
        if self._limit is None or self._aim.as_today or smallest_bytes <= self._limit:
            return
        what = "the weights alone take" if beside_bytes else "the file has"
        raise TargetError(
            f"{self._build.name}: no choice of widths gets below {smallest_bytes:,} bytes "
            f"({human(smallest_bytes)}), which {what}, and {self._limit:,} were asked for",
            hint=f"give {self._least(smallest_bytes + beside_bytes)}, or take another backend or a "
            "smaller model",
        )

    def _least(self, size_bytes: int) -> str:
        return self._aim.least(size_bytes, self._plan.whole.parameters)

    def _best(self) -> Trial:
        if self._limit is not None:
            return ends.closest(self._build.name, self._trials, self._limit)
        passing = [trial for trial in self._trials if self._passes(trial)]
        return ends.smallest(self._build.name, self._trials, passing, self._left)


def _options(group: Group, losses: Mapping[str, Mapping[str, float]]) -> Iterator[Option]:
    """The ways to store ``group``, but those that its backend turned out not to have."""
    for label, stored in group.widths.items():
        parts = [losses[matrix].get(label) for matrix in group.matrices]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            yield Option(stored=stored, size_bytes=group.size_bytes[label], loss=sum(known))

"""Choices of widths: of real plans, with made-up losses and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phipipe import backends
from phipipe.backends.widths import Stores
from phipipe.evaluate import reports
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reports import Metrics
from phipipe.execution.results import Outcome
from phipipe.models import linears
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import preparation, tuning
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.tuning import maps
from phipipe.tuning.aims import Aim
from phipipe.tuning.curve import Choice, Curve, Option, Point, point
from phipipe.tuning.fit import Fit, Measured
from phipipe.tuning.results import AS_IT_STANDS, CHOSEN, SMALLEST, Check, Trial, Tuned
from testing.places import RECIPES

TINY = ("source={builtin: tiny-phi3}", "evaluate.text={builtin: stories}", "weights={}")
NO_PLAN: Any = None
ANSWERS = Answers(
    metrics={"ended": 0.75, "loops": 0.0, "answer_flips": 0.25},
    asked={"ended": 4, "loops": 4, "answer_flips": 4},
    failed={"ended": [3]},
    prompts=4,
    new_tokens=64,
)


def builds(*sets: str, path: Path = RECIPES / "phi35-cpu-int4.yaml") -> list[Build]:
    """The builds of a recipe for the embedded model, with ``sets`` laid on it."""
    return loading.load(path, sets=(*TINY, *sets), options=backends.OptionsOf())


def stores_of(build: Build) -> Stores:
    """The widths of its backend, which has some."""
    stores = backends.load(build.recipe.backend).stores
    assert stores is not None
    return stores


def planned(build: Build, checkpoint: Checkpoint | None = None) -> tuple[Plan, tuning.Scope]:
    """Its plan, and what can be chosen: for the shape ``checkpoint``, if given."""
    plan = preparation.prepare(build)
    if checkpoint is not None:
        plan = replace(plan, source=checkpoint)
    return plan, tuning.scope(build, preparation.job_of(build, plan.whole))


def curve(build: Build, plan: Plan, scope: tuning.Scope) -> Curve:
    """A curve whose losses halve thrice with each bit; the first and last layers cost most."""
    stores, shapes = stores_of(build), linears.shapes(plan.whole)
    last = plan.whole.layers - 1

    def loss(name: str, matrix: str, label: str) -> float:
        bits = stores.bits_per_weight(scope.groups[name].widths[label], shapes[matrix][1])
        layer = linears.layer_of(name)
        weight = 4.0 if layer in (0, last, None) else 1.0
        return 0.0 if bits >= 16 else 0.1 * weight * math.pow(8, 1 - bits)

    return Curve(
        {
            name: [
                Option(
                    stored=stored,
                    size_bytes=group.size_bytes[label],
                    loss=loss(name, group.matrices[0], label),
                )
                for label, stored in group.widths.items()
            ]
            for name, group in scope.groups.items()
        }
    )


def trial(what: str, choice: Choice | None, size_bytes: float, kld: float, base: int) -> Trial:
    """A file with these figures; predicted a little wrong."""
    found = point(choice) if choice else None
    return Trial(
        what=what,
        choice=choice,
        predicted=found and Point(size_bytes=found.size_bytes + base, loss=found.loss),
        predicted_kld=0.8 * kld if choice else None,
        metrics={
            "size_gib": size_bytes / 2**30,
            "kld_mean": kld,
            "top1": 0.97,
            "bits_per_weight": 4.5,
        },
        stderr={"kld_mean": kld / 20, "top1": 0.002},
    )


def tuned(
    folder: Path,
    build: Build,
    aim: Aim = Aim(),  # noqa: B008 - frozen
    checkpoint: Checkpoint | None = None,
    answers: Answers | None = ANSWERS,
) -> Tuned:
    """What `tune` could have found for ``build``; the reports of its last file lie in
    ``folder``."""
    plan, scope = planned(build, checkpoint)
    curved, base = curve(build, plan, scope), scope.base_bytes
    smallest = curved.smallest
    least = point(smallest).size_bytes + base
    chosen = curved.within(point(smallest).size_bytes + least // 5)
    assert chosen is not None
    size = point(chosen).size_bytes + base
    trials = [
        trial(AS_IT_STANDS, None, 1.02 * size, 0.03, base),
        trial(SMALLEST, smallest, 1.01 * least, 1.3 * point(smallest).loss, base),
        trial(CHOSEN, chosen, 1.01 * size, 1.2 * point(chosen).loss, base),
    ]
    return Tuned(
        build=build,
        aim=aim,
        limit_bytes=None if aim.by_gates else round(1.02 * size),
        base_bytes=base,
        curve=curved,
        fit=Fit([measured(one) for one in trials if one.choice]),
        checks=[Check(name=name, predicted=1e-4, measured=1.2e-4) for name in [*chosen][:4]],
        trials=trials,
        best=trials[-1],
        quantize={"map": maps.patterns({name: one.stored for name, one in chosen.items()})},
        final=outcome(folder, plan, trials[-1].metrics, answers),
    )


def measured(one: Trial) -> Measured:
    """``one`` as a fit takes it."""
    assert one.predicted is not None
    return Measured(predicted=one.predicted, size_bytes=one.size_bytes, kld=one.kld)


def outcome(
    folder: Path, plan: Plan, metrics: Mapping[str, float], answers: Answers | None
) -> Outcome:
    """An outcome whose reports lie in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    told: Any = SimpleNamespace(stored=SimpleNamespace(path=folder))
    reports.write(folder, Metrics(metrics=dict(metrics), stderr={"kld_mean": 0.001}))
    results = {"evaluate": told}
    if answers is not None:
        reports.write(folder, answers)
        results["answers"] = told
    return Outcome(plan=plan, results=results)

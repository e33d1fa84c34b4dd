"""What becomes of a build's package: compared with the one accepted last, pointed at unless it is
worse."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe import metrics
from phipipe.batch import folder
from phipipe.batch.folder import LATEST
from phipipe.batch.selection import Item
from phipipe.errors import GateFailed, PhipipeError, Skipped
from phipipe.evaluate import sampling
from phipipe.evaluate.answer_reports import AnswerFigures, Answers
from phipipe.evaluate.reports import Metrics, Speed, Vision
from phipipe.execution.results import Outcome
from phipipe.package import package
from phipipe.package.manifest_schema import Manifest
from phipipe.store import free_space, refusals

SIZES, SPEEDS = metrics.names("size"), metrics.names("speed")
ANSWERS = metrics.names("answers")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A metric that is worse than before by more than ``limit``; ``after`` is None: it is not
    measured any more."""

    metric: str
    before: float
    after: float | None
    limit: float

    def words(self) -> str:
        now = "is not measured any more" if self.after is None else f"went to {self.after:.4g}"
        return (
            f"`{self.metric}` was {self.before:.4g} and {now}; {self.limit:.4g} worse is tolerated"
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of one build. ``error`` is None where its package was accepted.

    ``metrics`` are the new figures as far as they were taken, ``before`` those of the package
    accepted last (empty: there was none); ``compared`` the names of those that were taken alike.
    """

    item: Item
    outcome: Outcome | None = None
    error: PhipipeError | None = None
    version: str | None = None
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    compared: frozenset[str] = frozenset()
    regressions: tuple[Regression, ...] = ()

    @property
    def seconds(self) -> float:
        """Time that the build's own and shared steps took in this batch; nothing for what was
        cached."""
        results = self.outcome.results.values() if self.outcome else ()
        done = (result for result in results if not result.cached)
        return sum(float(result.usage.get("seconds", 0.0)) for result in done)

    @property
    def state(self) -> str:
        """built, cached, gated (a gate, or worse than before), failed, refused (never started),
        skipped."""
        if isinstance(self.error, Skipped):
            return "skipped"
        if isinstance(self.error, GateFailed):
            return "gated"
        if self.error is not None:
            return "failed" if self.outcome else "refused"
        return "cached" if self.outcome and self.outcome.all_cached else "built"


def finish(
    item: Item, outcome: Outcome | None, out: Path, keep: int, note: Callable[[str], None]
) -> Done:
    """``_accept``, whose own failures are the build's."""
    try:
        with refusals.guard(out, remedy=free_space.KEEP_OUT):
            return _accept(item, outcome, out, keep, note)
    except PhipipeError as error:
        return Done(item=item, outcome=outcome, error=error, metrics={}, before={})


def _accept(
    item: Item, outcome: Outcome | None, out: Path, keep: int, note: Callable[[str], None]
) -> Done:
    """Compare a build's package with the one accepted last; point at it, unless it is worse; remove
    old ones."""
    if outcome is None or item.build is None:
        return Done(item=item, error=item.error, metrics={}, before={})
    home, metrics = out / item.name, figures(outcome)
    accepted = folder.latest(home)
    old = _manifest(home, accepted, note) if accepted else None
    before = _figures_of(old) if old else {}
    if outcome.package is None:
        return Done(item=item, outcome=outcome, error=outcome.error, metrics=metrics, before=before)
    version = outcome.package.name
    worse: tuple[Regression, ...] = ()
    compared: frozenset[str] = frozenset()
    if old is not None:
        new = old if version == accepted else package.read_manifest(outcome.package)
        compared = comparable(old, new)
        was, now = sampling.alike(old.fidelity, new.fidelity) or (old.fidelity, new.fidelity)
        worse = regressions(
            {name: value for name, value in {**before, **was.metrics}.items() if name in compared},
            {**metrics, **now.metrics},
            item.build.recipe.evaluate.tolerance,
        )
    if version != accepted and not worse:
        folder.point(home, version)
    os.utime(outcome.package)  # the order of age is that of last use
    for gone in folder.surplus(home, keep):
        folder.remove(gone)
    return Done(
        item=item,
        outcome=outcome,
        error=_regressed(item.name, worse, home) if worse else None,
        version=version,
        metrics=metrics,
        before=before,
        compared=compared,
        regressions=worse,
    )


def _regressed(name: str, worse: Sequence[Regression], home: Path) -> GateFailed:
    words = "; ".join(one.words() for one in worse)
    return GateFailed(
        f"`{name}` is worse than the package accepted before: {words}",
        hint=f"`{LATEST}` stays where it was; to accept it, raise `evaluate.tolerance`, or "
        f"remove `{home / LATEST}`",
    )


def figures(outcome: Outcome) -> dict[str, float]:
    """Everything that was measured of a build, also of one whose gates failed."""
    return _joined(
        outcome.fidelity,
        outcome.load("measure", Speed),
        outcome.load("vision-evaluate", Vision),
        outcome.load("answers", Answers),
    )


def _figures_of(manifest: Manifest) -> dict[str, float]:
    fidelity = manifest.fidelity
    return _joined(fidelity, manifest.speed, fidelity.vision, fidelity.generation)


def _joined(*reports: Metrics | Speed | Vision | AnswerFigures | None) -> dict[str, float]:
    return {
        name: value
        for report in reports
        if report is not None
        for name, value in report.metrics.items()
    }


def comparable(old: Manifest, new: Manifest) -> frozenset[str]:
    """Metrics that two manifests took alike: fidelity on the same tokens (as it runs: on the same
    machine, too), answers to the same prompts, speed on the same machine; sizes always."""
    names = frozenset(_figures_of(old))
    fidelity = names - SIZES - SPEEDS - ANSWERS if _text_of(old) == _text_of(new) else frozenset()
    alike = sampling.alike(old.fidelity, new.fidelity)
    if alike is None:
        fidelity = frozenset()
    elif sampling.shared(told.fidelity.sampling for told in (old, new)) is not None:
        fidelity -= sampling.WHOLE
    if _run_of(old) != _run_of(new):
        fidelity -= {"kld_run"}
    answers = names & ANSWERS if _prompts_of(old) == _prompts_of(new) else frozenset()
    speed = names & SPEEDS if _machine_of(old) == _machine_of(new) else frozenset()
    return names & SIZES | fidelity | answers | speed


def _text_of(manifest: Manifest) -> tuple[str, int, int, int]:
    """What fidelity is measured on; of builds that tell of their windows, some may do."""
    baseline = manifest.fidelity.baseline
    tokens = 0 if manifest.fidelity.sampling else baseline.tokens
    return manifest.steps["text"].digest, tokens, baseline.window, baseline.skip


def _run_of(manifest: Manifest) -> tuple[str, int, Mapping[str, object]] | None:
    """What ``kld_run`` is measured on, besides the text: any machine where it is ``kld_mean``."""
    run = manifest.fidelity.run
    return (run.how, run.positions, manifest.speed.host) if run and run.how else None


def _prompts_of(manifest: Manifest) -> tuple[str, int, int]:
    """What was answered, and at which length; nothing where nothing was asked."""
    step, told = manifest.steps.get("prompts"), manifest.fidelity.generation
    return (step.digest, told.prompts, told.new_tokens) if step and told else ("", 0, 0)


def _machine_of(manifest: Manifest) -> tuple[Mapping[str, object], int]:
    """What speed is measured on."""
    return manifest.speed.host, manifest.speed.prompt_tokens


def regressions(
    before: Mapping[str, float], after: Mapping[str, float], tolerance: Mapping[str, float]
) -> tuple[Regression, ...]:
    """Where ``after`` is worse than ``before`` by more than is tolerated."""
    worse = []
    for metric, limit in sorted(tolerance.items()):
        if metric not in before:
            continue
        was, now = before[metric], after.get(metric)
        loss = float("inf") if now is None else metrics.METRICS[metric].loss(was, now)
        if loss > limit:
            worse.append(Regression(metric=metric, before=was, after=now, limit=limit))
    return tuple(worse)


def _manifest(home: Path, version: str, note: Callable[[str], None]) -> Manifest | None:
    """The manifest of the package that was accepted last; None if somebody damaged or removed
    it."""
    try:
        return package.read_manifest(home / version)
    except PhipipeError as error:
        note(f"nothing to compare `{home.name}` with: {error.message}")
        return None

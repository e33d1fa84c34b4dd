"""The step that scores an artifact as its runtime computes by default, where that differs from how
the file is scored."""

from __future__ import annotations

from dataclasses import replace

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.evaluate import run_reports
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import machine, sampled
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.device import Device
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Params, Step

NAME = run_reports.STEP
LARGE_TOKENS = 1024  # of a large model, of which a window takes minutes


def knob(recipe: Recipe, target: Device, api: str) -> str | None:
    """What the runtime does by default where a build for ``api`` is scored, and scoring does not;
    None where the unit gives no logits, and another one's defaults say nothing of it."""
    backend = backends.load(recipe.backend)
    if api in backend.tokens_only:
        return None
    _, scored = machine.scored_with(target, api, backend)
    return backend.knob(recipe, scored)


def tokens(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """How many tokens are scored at most."""
    asked = recipe.evaluate.most_tokens
    return min(asked, LARGE_TOKENS) if checkpoint.large else asked


def steps(evaluation: Step, knob: str | None, tokens: int, recipe: Recipe) -> list[Step]:
    """What ``evaluation`` scores, scored again on its first ``tokens`` as it runs; nothing where
    nothing differs. Where ``recipe`` asks for as many as it takes, fewer may do."""
    until = sampled.until_run(recipe) if "until" in evaluation.params else {}
    return [_step(evaluation, NAME, {"tokens": tokens, **until})] if knob else []


def cache_step(evaluation: Step, kind: str, tokens: int) -> Step:
    """The same with keys and values kept as ``kind`` of the backend's ``caches``."""
    return _step(evaluation, run_reports.CACHE_STEP, {"tokens": tokens, "cache": kind})


def _step(evaluation: Step, name: str, params: Params) -> Step:
    opened = {k: v for k, v in evaluation.params.items() if k in ("backend", "api")}
    return replace(
        evaluation,
        name=name,
        runs="evaluate/compare_run",
        version=1,
        needs={name: evaluation.needs[name] for name in ("artifact", "baseline")},
        params={**opened, **params},
        measurement=True,  # processors differ in what they round
        output_bytes=0,
    )


def check_cache(recipe: Recipe, api: str, kind: str | None) -> None:
    """Refuse a backend that cannot keep the cache of a build for ``api`` as ``kind``, or not so
    that it shows. None is the usual cache.

    Raises:
        TargetError: names those that can.
    """
    backend = backends.load(recipe.backend)
    able = ", ".join(sorted(name for name in backends.names() if backends.load(name).caches))
    if kind is None:
        return
    if kind not in backend.caches:
        raise TargetError(
            f"`{recipe.backend}` cannot keep the keys and values of a package as {kind}",
            hint=f"backends that can: {able}",
        )
    if api in backend.tokens_only:
        raise TargetError(
            f"the cache of `{api}` shows in no figure: its runtime gives tokens alone"
        )


def check(build: Build, api: str) -> None:
    """Refuse a gate on ``kld_run`` where nobody can measure it.

    Raises:
        TargetError: the unit gives no logits.
    """
    if (
        "kld_run" in build.recipe.evaluate.gates
        and api in backends.load(build.recipe.backend).tokens_only
    ):
        message = f"`kld_run` cannot be measured on `{api}`, whose runtime gives tokens alone"
        where = ("evaluate", "gates", "kld_run")
        raise problem_at(build, where, message, "set the gate on `kld_mean`")

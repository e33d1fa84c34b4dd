"""Builds that score as many windows as it takes (`evaluate.tokens: auto`): what their steps are
told, and how they stay comparable with others of one file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from phipipe.evaluate.run_reports import SAME
from phipipe.evaluate.sampling import MEANS, WHOLE
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.recipe.recipe import Recipe
from phipipe.recipe.tokens import AUTO, USUAL_TOKENS, most
from phipipe.steps import Json, Step
from phipipe.vision import kinds

BASELINES = ("baseline", "base-baseline")


def settled(build: Build, whole: Checkpoint) -> Build:
    """``build``, which says how many tokens are scored where its recipe does not: that depends on
    the original."""
    evaluate = build.recipe.evaluate
    if evaluate.tokens is not None:
        return build
    language = kinds.language(whole) if kinds.sees(whole) else whole
    tokens = AUTO if language.large else USUAL_TOKENS
    recipe = build.recipe.model_copy(
        update={"evaluate": evaluate.model_copy(update={"tokens": tokens})}
    )
    return replace(build, recipe=recipe)


def baseline(recipe: Recipe) -> dict[str, Json]:
    """Parameters of the step that scores the original. It reads the text in its own order, once for
    all builds, so that it knows nothing of where a build may stop."""
    evaluate = recipe.evaluate
    windows = {"tokens": evaluate.most_tokens, "window": evaluate.window, "skip": evaluate.skip}
    return windows | ({"at_most": True} if evaluate.tokens == AUTO else {})


def until(recipe: Recipe, knob: str | None) -> dict[str, Json]:
    """Parameters of the step that scores a build, whose runtime does ``knob`` besides; none where a
    number is asked for."""
    ruled = MEANS | WHOLE if knob == SAME else (MEANS | WHOLE) - {"kld_run"}
    return _until(recipe, ruled)


def until_run(recipe: Recipe) -> dict[str, Json]:
    """The same of the step that scores it as its runtime computes by default."""
    return _until(recipe, frozenset({"kld_run"}))


def _until(recipe: Recipe, ruled: frozenset[str]) -> dict[str, Json]:
    evaluate = recipe.evaluate
    if evaluate.tokens != AUTO:
        return {}
    gates = {
        name: gate.model_dump(exclude_none=True)
        for name, gate in evaluate.gates.items()
        if name in ruled
    }
    return {"until": {"tokens": evaluate.most_tokens, "gates": gates}}


def lines(plan: Plan) -> list[str]:
    """What is foreseen of how much will be scored; nothing where the recipe says a number, or
    nothing is scored."""
    evaluate = plan.build.recipe.evaluate
    if evaluate.tokens != AUTO or not any("until" in step.params for step in plan.steps):
        return []
    return [
        f"scored on at most {evaluate.most_tokens:,} tokens: until every gate is decided and the "
        "error of the KL divergence is below 5 %"
    ]


def whole(step: Step) -> Step:
    """``step``, which scores all that the baseline has."""
    return replace(step, params={k: v for k, v in step.params.items() if k != "until"})


def comparable(plans: Sequence[Plan]) -> list[Plan]:
    """``plans`` of one file, of which those that score one text in one way compare though some ask
    for a number of tokens and some for `auto`.

    The baseline that has the most tokens serves the builds that ask for `auto`, too: the windows
    that these score are among the first. Builds with a number keep what they score, and tell of the
    windows that others may score as well.
    """
    alike: defaultdict[tuple[object, ...], list[Plan]] = defaultdict(list)
    for plan in plans:
        alike[_scores(plan)].append(plan)
    return [_beside(plan, alike[_scores(plan)]) for plan in plans]


def _scores(plan: Plan) -> tuple[object, ...]:
    """The same of plans of one file that score one text in one way but for the number of tokens."""
    build = plan.build
    recipe, evaluate = build.recipe, build.recipe.evaluate
    how = (evaluate.text, evaluate.window, evaluate.skip)
    return (build.folder, recipe.name, recipe.source, *how)


def _beside(plan: Plan, others: Sequence[Plan]) -> Plan:
    """``plan``, to be compared with ``others``, which score as it does but for how much."""
    asked = [(_tokens(one), one) for one in others]
    numbers = {tokens: one for tokens, one in asked if isinstance(tokens, int)}
    if not numbers or len(numbers) == len({tokens for tokens, _ in asked}):
        return plan
    evaluate = plan.build.recipe.evaluate
    if evaluate.tokens != AUTO:
        told = {"told": most(AUTO, evaluate.window)}
        return _with(plan, lambda step: replace(step, params={**step.params, **told}), "evaluate")
    longest = max(numbers)
    if longest < evaluate.most_tokens:
        return plan  # the windows that it may score are not all there
    there = {step.name: step for step in numbers[longest].steps}
    return _with(plan, lambda step: there[step.name], *BASELINES)


def _tokens(plan: Plan) -> int | str | None:
    return plan.build.recipe.evaluate.tokens


def _with(plan: Plan, change: Callable[[Step], Step], *names: str) -> Plan:
    steps = (change(step) if step.name in names else step for step in plan.steps)
    return replace(plan, steps=tuple(steps))

"""What a build could do better, where its recipe says nothing of it: one quiet line, no warning."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from phipipe import words
from phipipe.errors import PhipipeError
from phipipe.planning import calibration, check, preparation
from phipipe.planning.plan import Plan
from phipipe.recipe.learned import Weights
from phipipe.recipe.recipe import Recipe

# Measured for GPTQ on two cores: 75 s for each of the 32 layers of 3.8e9 parameters, from
# 12,288 tokens (40 s on Zen 5). Nearly all of it is products of weights with tokens.
SECONDS_PER_PRODUCT = 75 * 32 / (3.8e9 * 12_288)
USUAL = Weights(learn="gptq")


def of(plan: Plan) -> str | None:
    """That learned weights would be nearer to the original, and about how long learning takes; or
    that a word about them has no effect. None where the recipe speaks of weights, learns from a
    text already, or could not have them."""
    build, recipe = plan.build, plan.build.recipe
    is_whole = any(step.name == "package" for step in plan.steps)
    if plan.source is None or not is_whole:
        return None
    given = recipe.weights
    has_groups = given.learn is None and "group_size" in given.model_fields_set
    if recipe.precision != "int4" or ("weights" in build.written and not has_groups):
        return None
    if any("calibration" in step.needs.values() for step in plan.steps):
        return None
    needs = _lacking(recipe)
    told = {"weights": given.model_copy(update={"learn": "gptq"}) if has_groups else USUAL}
    learning = recipe.model_copy(update=told)
    try:
        asked = replace(build, recipe=learning)
        preparation.outlined(asked, plan.whole)
    except PhipipeError:
        return None  # the unit, the backend or an option leaves no room for it
    try:
        check.check_window(asked, "calibrate", plan.checkpoint.context_length)
    except PhipipeError:
        needs = needs or f"with a `calibrate.window` of {plan.checkpoint.context_length} at most"
    if has_groups:
        return (
            "hint: the runtime rounds the weights, and `weights.group_size` has no effect; with "
            f"`weights.learn: gptq` {needs and needs + ' '}they are learned in these groups"
        )
    seconds = SECONDS_PER_PRODUCT * plan.checkpoint.parameters * recipe.calibrate.tokens
    return (
        f"hint: the runtime rounds the weights; `weights: {{learn: gptq}}` {needs and needs + ' '}"
        f"left about a fifth of the divergence on a trained model ({about(seconds)} on two cores)"
    )


def _lacking(recipe: Recipe) -> str:
    """What else the recipe needs to learn weights; no hub is asked for a hint."""
    if calibration.unasked_text(recipe) is not None:
        return ""
    if calibration.text_of(recipe) is None:
        return "with a text to learn from (`calibrate: {text: {file: PATH}}`)"
    return "with a `calibrate.text` that is not the one evaluated on"


def about(seconds: float) -> str:
    """A time that is hardly known, rounded up: to minutes, from 10 on to five, from an hour on to
    half hours."""
    minutes = ceil(seconds / 60)
    if minutes <= 1:
        return "about a minute"
    step = 1 if minutes < 10 else 5 if minutes < 60 else 30
    return f"about {words.duration(60 * step * ceil(minutes / step))}"

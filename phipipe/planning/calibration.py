"""The steps that bring the text which data-aware quantization learns from."""

from __future__ import annotations

from phipipe.algorithms import distilled
from phipipe.hub import take
from phipipe.planning import check
from phipipe.planning.targets import placed
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.recipe import Recipe, Text, wikitext
from phipipe.steps import Step

SAYING = frozenset({"weights", "quantize"})  # keys of a recipe that say how weights are rounded


def calibration_steps(build: Build, context: int) -> list[Step]:
    """The text that data-aware quantization learns from, and its tokens, for a model that knows
    ``context`` of them.

    Raises:
        TargetError: the recipe names none, or the text it is evaluated on, or windows that the
            model cannot read.
    """
    recipe = build.recipe
    check.check_window(build, "calibrate", context)
    text = text_of(recipe)
    if text is None:
        message = (
            "what this recipe asks for learns from a calibration text, and the recipe names none"
        )
        raise problem_at(
            build,
            ("calibrate",),
            message,
            "add `calibrate: {text: {file: PATH}}`, not the text evaluated on",
        )
    with placed(build, "calibrate", "text", "file"):
        same = take.same_text(recipe.evaluate.text, text, build.folder)
    if same:
        message = (
            "the calibration text is the evaluation text: the figures would flatter what "
            "was fitted to it"
        )
        unasked = not build.written & SAYING  # learning is what is usual
        instead = ", or leave rounding to the runtime: `weights: none`" if unasked else ""
        hint = f"give another text in `calibrate.text`{instead}"
        raise problem_at(build, ("calibrate", "text"), message, hint)
    return [
        take.text_step(text, build.folder, "calibration"),
        tokens_step("calibration", recipe.calibrate.tokens, recipe.calibrate.window),
    ]


def tokens_step(name: str, tokens: int, window: int, first: int = 0) -> Step:
    """So many ``tokens`` of the calibration text in windows, behind the ``first`` ones."""
    return Step(
        name=name,
        runs="evaluate/calibration",
        version=1,
        needs={"source": "source", "text": "calibration-text"},
        params={"tokens": tokens, "window": window, **({"first": first} if first else {})},
        toolchain="torch",
    )


def held_out_step(recipe: Recipe) -> Step:
    """Tokens of the calibration text behind those that are learned from."""
    calibrate, tokens = recipe.calibrate, distilled.held_out_tokens(recipe.calibrate.window)
    return tokens_step(distilled.HELD_OUT, tokens, calibrate.window, calibrate.tokens)


def text_of(recipe: Recipe) -> Text | None:
    """The text that is learned from: the recipe's own, or the usual one."""
    return recipe.calibrate.text or usual_text(recipe)


def unasked_text(recipe: Recipe) -> Text | None:
    """The same where nobody asked for it: never the text that is evaluated on, as far as the recipe
    alone tells. The built-in texts of both are two."""
    text = text_of(recipe)
    return None if text == recipe.evaluate.text and text.builtin is None else text


def usual_text(recipe: Recipe) -> Text | None:
    """What quantization learns from where the recipe does not say: never what the recipe is
    evaluated on by default."""
    origin = recipe.source.origin
    if origin.builtin:
        return Text(builtin="stories")
    return Text.model_validate({"dataset": wikitext("train")}) if origin.repo else None

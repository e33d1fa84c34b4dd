"""How a build rounds to 4 bits where its recipe says nothing of it: learned weights, where they
take minutes and no more room than what the runtime rounds by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from phipipe import backends
from phipipe.errors import PhipipeError
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import calibration, check
from phipipe.planning.learnable import GROUPS, stores_learned
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.recipe.learned import Weights, groups_words
from phipipe.steps import Json
from phipipe.vision import kinds

Outline = Callable[[Build, Checkpoint], Plan]
"""The plan of a build without its steps; raises PhipipeError where it is impossible."""
METHOD = "gptq"  # it left a fifth of every runtime's own divergence on a trained model
BOTH = ("embed_tokens", "lm_head")
# Bits of embedding and head, the best first: 8 in the groups of the layers, 8 by row, 4. Coarser
# groups of the layers cost more than any of these.
OUTER: Sequence[tuple[Sequence[str], int]] = (
    ((), 8),
    (BOTH, 8),
    (BOTH[:1], 4),
    (BOTH[1:], 4),
    (BOTH, 4),
)
LEEWAY = 1.02  # sizes of plans are estimates: a runtime's own mix of types may take 2 % more


def settled(build: Build, whole: Checkpoint, outline: Outline) -> Build:
    """``build``, which says how its weights are rounded where its recipe does not: learned, in the
    finest groups that take no more room than the runtime's own rounding. The runtime itself rounds
    what cannot be learned, and models above 10⁹ parameters, for which learning is no matter of
    minutes."""
    if not _is_open(build, whole):
        return build
    limit_bytes = _size_bytes(build, whole, outline)
    if limit_bytes is None:
        return build  # impossible either way; it is told of what the recipe says
    for one in _learning(build):
        size_bytes = _size_bytes(one, whole, outline)
        if size_bytes is not None and size_bytes <= LEEWAY * limit_bytes:
            return one
    return build


def lines(plan: Plan) -> list[str]:
    """That weights are learned though the recipe does not say so, and what it may say instead."""
    asked = plan.build.recipe.weights
    if asked.learn is None or plan.build.written & calibration.SAYING:
        return []
    return [
        f"weights are learned by {asked.learn} in {groups_words(asked.group_size)}, as is usual "
        f"for int4; `weights: none` leaves rounding to {plan.build.recipe.backend}"
    ]


def _is_open(build: Build, whole: Checkpoint) -> bool:
    """Whether the recipe leaves open how an int4 build is rounded, and there is a text to learn
    from that asks no more of a hub than the recipe does."""
    recipe = build.recipe
    if recipe.precision != "int4" or build.written & calibration.SAYING:
        return False
    if recipe.weights.model_fields_set or recipe.quantize:
        return False  # a part of phipipe has written them
    if not stores_learned(recipe.backend):
        return False
    language = kinds.language(whole) if kinds.sees(whole) else whole
    text = calibration.unasked_text(recipe)
    if language.large or text is None:
        return False
    spoken_of = recipe.calibrate.text, recipe.evaluate.text.dataset
    return text.dataset is None or any(one is not None for one in spoken_of)


def _learning(build: Build) -> Iterator[Build]:
    """``build`` with weights that are learned, the best first."""
    for size in (*(size for size in GROUPS if size > 0), -1):
        weights = Weights(learn=METHOD, group_size=size)
        for names, bits in OUTER:
            width = {"bits": bits, "group_size": -1 if bits == 8 else size}
            quantize: dict[str, Json] = {"map": dict.fromkeys(names, width)} if names else {}
            options = backends.load(build.recipe.backend).options.model_validate(quantize)
            told = {"weights": weights, "quantize": quantize}
            yield replace(build, recipe=build.recipe.model_copy(update=told), options=options)


def _size_bytes(build: Build, whole: Checkpoint, outline: Outline) -> int | None:
    """About what the artifact takes; None where it cannot be built."""
    try:
        check.check_window(build, "calibrate", whole.context_length)
        fitting = outline(build, whole).fit
    except PhipipeError:
        return None
    return fitting.weight_bytes if fitting else None

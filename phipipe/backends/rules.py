"""What cannot work, or works badly, as data: what a rule and a fix-up are, and how rules are held
against a job.

A message says what is wrong in the user's own names, a hint what to do. Conditions see the recipe,
the backend's options and the checkpoint's shape, nothing else: no disk, no network. The device's
side is decided in ``plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phipipe.models.any_model import Unseen
from phipipe.steps import Advice, Json

if TYPE_CHECKING:
    from phipipe.backends.base import AnyJob, Options
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Recipe

    Condition = Callable[[Recipe, Options, Checkpoint], bool]
    Words = Callable[[Recipe, Options, Checkpoint], Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``message`` and ``hint`` are format strings over ``recipe``, ``options``, ``checkpoint``
    and what ``words`` works out. Why it is so, since when, and where it is discussed
    stands in ``assets/explanations.yaml``.
    """

    id: str
    level: str  # "error" or "warning"
    when: Condition
    message: str
    hint: str | None = None
    words: Words | None = None


@dataclass(frozen=True, kw_only=True)
class Fixup:
    """A change to the staged copy's ``config.json``, made without asking and recorded in the
    manifest."""

    id: str
    rule: str
    when: Callable[[Recipe, Checkpoint], bool]
    reason: str
    patch: Callable[[Checkpoint], Mapping[str, Json]]


def check(job: AnyJob, table: Sequence[Rule]) -> list[Advice]:
    """Advice of every rule of ``table`` that applies.

    Of ``ANY_MODEL``, only rules apply that do not look at the model.
    """
    applied = (_applied(rule, job) for rule in table)
    return [advice for advice in applied if advice]


def _applied(rule: Rule, job: AnyJob) -> Advice | None:
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    try:
        if not rule.when(recipe, options, checkpoint):
            return None
        facts = {"recipe": recipe, "options": options, "checkpoint": checkpoint}
        words = rule.words(recipe, options, checkpoint) if rule.words else {}
        hint = rule.hint.format(**facts, **words) if rule.hint else None
        message = rule.message.format(**facts, **words)
        return Advice(level=rule.level, rule=rule.id, message=message, hint=hint)
    except Unseen:
        return None


# For runtimes that know one way of choosing experts.
SOFTMAX_ROUTED: tuple[Rule, ...] = (
    Rule(
        id="M05",
        level="error",
        when=lambda r, o, c: c.model_type == "phimoe",
        message="`{recipe.backend}` routes tokens by a plain softmax where Phi's mixtures of "
        "experts were trained with "
        "SparseMixer: outputs differ from the original's at every precision",
        hint="`backend: openvino` computes it exactly",
    ),
)

# For runtimes that compute without the sliding window that a model has.
WINDOWLESS: tuple[Rule, ...] = (
    Rule(
        id="M09",
        level="error",
        when=lambda r, o, c: c.cuts and r.evaluate.window > (c.sliding_window or 0),
        message="`{recipe.backend}` ignores the model's sliding window of "
        "{checkpoint.sliding_window} tokens: windows "
        "of {recipe.evaluate.window} tokens would differ from the original",
        hint="set `evaluate.window` to that or less; `onnxruntime` and `openvino` have the window",
    ),
    Rule(
        id="M15",
        level="warning",
        when=lambda r, o, c: c.cuts and (r.context is None or r.context > (c.sliding_window or 0)),
        message="`{recipe.backend}` ignores the model's sliding window: use it with at most "
        "{checkpoint.sliding_window} tokens, beyond which it differs from the original",
        hint="`context: {checkpoint.sliding_window}` says that to this build",
    ),
)

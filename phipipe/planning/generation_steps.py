"""Steps of a plan that asks for answers (`evaluate.generate`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from phipipe.evaluate.generation import ROOM
from phipipe.hub import prompts
from phipipe.models import fit, layerwise_memory
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Step

ANSWERS = "answers"  # name of the step whose figures are gated


def check(build: Build, context: int) -> None:
    """Refuse answers that leave no room for a prompt in ``context`` tokens.

    Raises:
        TargetError: says which length would do.
    """
    asked = build.recipe.evaluate.generate
    if asked is None or ROOM * asked.new_tokens < context:
        return
    message = (
        f"`new_tokens: {asked.new_tokens}` leaves no room for a prompt: an answer may take "
        f"{ROOM * asked.new_tokens} tokens, and the context has {context}"
    )
    where = ("evaluate", "generate", "new_tokens")
    raise problem_at(build, where, message, "lower it, or raise `context`", where[:2])


def original_steps(recipe: Recipe, path: Path, checkpoint: Checkpoint) -> list[Step]:
    """The prompts in ``path``, and the answers of the original, whose language model is
    ``checkpoint``. Builds of one original share them, whatever their caches hold.

    Raises:
        SourceError: see ``hub.prompts``.
    """
    asked = recipe.evaluate.generate
    assert asked is not None
    tokens = layerwise_memory.ANSWERED_TOGETHER
    # In fp32, and once more while they grow.
    cache = 2 * 4 * 2 * checkpoint.layers * checkpoint.kv_heads * checkpoint.head_size * tokens
    return [
        prompts.step(path),
        Step(
            name="questions",
            runs="evaluate/ask_original",
            version=1,
            needs={"source": "source", "prompts": "prompts"},
            params={
                "new_tokens": asked.new_tokens,
                "context": min(recipe.context or fit.CONTEXT, checkpoint.context_length),
                "limit": asked.limit,
                "strict": _is_strict(recipe),
            },
            toolchain="torch",
            memory_bytes=layerwise_memory.memory_bytes(checkpoint, tokens, 1) + cache,
        ),
    ]


def build_steps(recipe: Recipe, evaluation: Step, context: int) -> list[Step]:
    """The answers of what the step ``evaluation`` scores, opened as it is there, in a cache of
    ``context`` tokens. None where nothing is asked."""
    if recipe.evaluate.generate is None:
        return []
    opened = {k: v for k, v in evaluation.params.items() if k in ("backend", "api")}
    return [
        replace(
            evaluation,
            name=ANSWERS,
            runs="evaluate/ask_build",
            version=1,
            needs={"artifact": evaluation.needs["artifact"], "questions": "questions"},
            params={**opened, "context": context, "strict": _is_strict(recipe)},
            output_bytes=0,
        )
    ]


def _is_strict(recipe: Recipe) -> bool:
    """Whether every prompt must be asked: those that somebody chose."""
    asked = recipe.evaluate.generate
    return asked is not None and asked.prompts.file is not None

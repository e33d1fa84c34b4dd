"""``weights: {distil: true}``: the step that trains the scales of learned weights: light, for
plans."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe.recipe import Calibrate
from phipipe.steps import Step, reading

NAME, HELD_OUT = "distil", "held-out"
TOGETHER = 2048  # tokens that one move of the scales is made for; and that judge them


def held_out_tokens(window: int) -> int:
    """How many tokens judge the scales, that nothing was learned from."""
    return max(window, TOGETHER // window * window)


def after(learning: Step, scales: int, checkpoint: Checkpoint, calibrate: Calibrate) -> Step:
    """``distil``: what ``learning`` has learned, its so many ``scales`` trained on the tokens that
    ``calibrate`` gives."""
    return Step(
        name=NAME,
        runs="algorithms/distil",
        version=1,
        needs={
            "source": "source",
            "weights": learning.name,
            "calibration": "calibration",
            "held-out": HELD_OUT,
        },
        toolchain="torch",
        resumes=True,
        output_bytes=learning.output_bytes,
        memory_bytes=_memory_bytes(scales, checkpoint, calibrate),
    )


def reads(steps: Sequence[Step], learning: Step) -> list[Step]:
    """``steps``, which store the distilled weights in the place of those of ``learning``."""
    return [reading(one, learning.name, NAME) for one in steps]


def _memory_bytes(scales: int, checkpoint: Checkpoint, calibrate: Calibrate) -> int:
    """Estimate: a layer in fp32 with its gradients, twice, and the next; what reaches each layer of
    the tokens of a move; what reaches the original's head of all tokens; head and embedding, the
    original's and rounded; a window's scores; and of each scale its state, in fp32."""
    inner, hidden = checkpoint.intermediate_size, checkpoint.hidden_size
    layer = 3 * inner * hidden + 4 * hidden * hidden
    together = max(TOGETHER, calibrate.window)
    states = together * (checkpoint.layers + 4) + 2 * (calibrate.tokens + together)
    tables = 4 * checkpoint.vocab_size * hidden
    scores = 5 * calibrate.window * checkpoint.vocab_size
    return 2**30 + 4 * (5 * layer + states * hidden + tables + scores + 6 * scales)

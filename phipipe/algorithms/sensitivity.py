"""The steps that say what an error in each matrix costs: light, for plans.

``sensitivity`` belongs to a checkpoint and a text, and to no backend; ``codec-errors`` weighs with
it what each width of a backend gets wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models.checkpoint import Checkpoint
from phipipe.steps import Json, Step

SENSITIVITY, CHECKS, ERRORS = "sensitivity.npz", "sensitivity.json", "errors.json"
TOKENS = 2048
ROWS = 256  # of a matrix that are rounded for a look at the error


def sensitivity_step(checkpoint: Checkpoint, window: int) -> Step:
    """How much an error in each matrix of the checkpoint costs."""
    return Step(
        name="sensitivity",
        runs="algorithms/sensitivity",
        version=1,
        needs={"source": "source", "calibration": "calibration"},
        params={"tokens": TOKENS},
        layers="source",
        toolchain="torch",
        output_bytes=4 * checkpoint.layers * 8 * checkpoint.intermediate_size,
        memory_bytes=_memory_bytes(checkpoint, window),
    )


Choices = Mapping[str, Mapping[str, Json]]
"""Matrix → label → width."""


def errors_step(toolchain: str, backend: str, params: Mapping[str, Json], choices: Choices) -> Step:
    """What each of ``choices`` costs: ``params`` are the options with which ``backend`` rounds; ""
    stands for weights on the lattice of all runtimes."""
    return Step(
        name="codec-errors",
        runs="evaluate/codec_errors",
        version=1,
        needs={"source": "source", "sensitivity": "sensitivity"},
        params={"backend": backend, "options": dict(params), "choices": dict(choices)},
        toolchain=toolchain,
        memory_bytes=2**30,
    )


def _memory_bytes(checkpoint: Checkpoint, window: int) -> int:
    """Estimate: a layer in fp32 with its gradients, and the next; what reached each layer, the head
    with its gradient, and a window's scores."""
    inner, hidden = checkpoint.intermediate_size, checkpoint.hidden_size
    layer = 3 * inner * hidden + 4 * hidden * hidden
    states = TOKENS * hidden * (checkpoint.layers + 4)
    head = 2 * checkpoint.vocab_size * hidden
    return 2**30 + 4 * (3 * layer + states + head + 4 * window * checkpoint.vocab_size)

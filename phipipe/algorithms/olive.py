"""Olive's passes as steps before a conversion: weights rotated (QuaRot, SpinQuant), rounding
learned by GPTQ.

A rotation is fused into the weights (norms go into the linears behind them), so the model computes
the same, in the same architecture; what QuaRot would rotate while running stays out. Checkpoints
are read and written in fp32: in 16 bits a rotated model is another one, and Olive rounds GPTQ's
scales to the width of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from phipipe.steps import Json, Params, Step

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

TOOLCHAIN = "olive"
Rotation = Literal["quarot", "spinquant"]
SEED = 0
# Rounding of activations that SpinQuant learns against: onnxruntime's kernels for CPUs round to 8
# bits.
ACTIVATION_BITS = 8
# Olive's tables, in the order it tries them.
_HADAMARD = (172, 156, 140, 108, 60, 52, 36, 28, 40, 20, 12, 1)


def rotations(method: Rotation | None, checkpoint: Checkpoint) -> list[Step]:
    """``rotate``: the checkpoint rotated by ``method``; nothing if that is None."""
    if method is None:
        return []
    sizes = (checkpoint.hidden_size, checkpoint.head_size)
    mode = "hadamard" if all(has_hadamard(size) for size in sizes) else "random"
    params: dict[str, Json] = {"method": method, "mode": mode, "seed": SEED}
    needs = {"source": "source"}
    memory = 6 * checkpoint.parameters + 2**30  # fp32, and the largest matrix in fp64
    if method == "spinquant":
        params["activation_bits"] = ACTIVATION_BITS
        needs["calibration"] = "calibration"
        # rotated weights anew for each batch, and what leads back
        memory += 8 * checkpoint.parameters + 2**31
    step = Step(
        name="rotate",
        runs="algorithms/rotate",
        version=1,
        needs=needs,
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=4 * checkpoint.parameters,
        memory_bytes=memory,
    )
    return [step]


def gptq_step(source: str, checkpoint: Checkpoint, tokens: int, params: Params) -> Step:
    """``gptq``: the output of step ``source`` with its linears rounded; ``params`` are those of
    ``gptq`` below."""
    parameters = checkpoint.parameters
    # all weights in fp32, a layer's inputs and outputs for all tokens, Hessians of one layer
    memory = (
        5 * parameters
        + 12 * tokens * checkpoint.hidden_size
        + 20 * checkpoint.intermediate_size**2
        + 2**30
    )
    return Step(
        name="gptq",
        runs="algorithms/gptq",
        version=1,
        needs={"source": source, "calibration": "calibration"},
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=(params["bits"] + 1) * parameters // 8
        + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
        memory_bytes=memory,
    )


def has_hadamard(size: int) -> bool:
    """Whether Olive can make a Hadamard matrix of ``size`` rows; else rotations are random
    orthogonal ones."""
    rest = size // next(known for known in _HADAMARD if size % known == 0)
    return rest & (rest - 1) == 0

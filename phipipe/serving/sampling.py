"""Tokens drawn by their probability, in the model's process.

With numpy, which every toolchain has: vocabularies have up to 200,000 tokens, and plain Python
would take longer for each than the model does.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from phipipe.backends.choosing import Choose
from phipipe.errors import StepFailed


def chooser(temperature: float, top_p: float, seed: int | None) -> Choose | None:
    """What draws a token from softmax(logits / ``temperature``), cut to the fewest tokens whose
    probability together reaches ``top_p`` (nucleus sampling, Holtzman et al. 2020, section 3.1).

    None, which is greedy, where either is 0. The same ``seed`` draws the same; None: another each
    time. What it returns raises StepFailed where logits are no numbers.
    """
    if temperature <= 0 or top_p <= 0:
        return None
    draw = random.Random(seed).random  # the same on every system, and in every version of Python

    def choose(logits: npt.NDArray[np.float32]) -> int:
        weights = _weights(logits, temperature)
        if top_p >= 1:
            return _drawn(weights.cumsum(), draw())
        order = np.argsort(-weights, kind="stable")
        reached = weights[order].cumsum()
        count = int(np.searchsorted(reached, top_p * reached[-1])) + 1
        return int(order[_drawn(reached[:count], draw())])

    return choose


def _weights(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities but for a common factor, float64 [vocabulary]; the largest is 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights: npt.NDArray[np.float64] = np.exp(
            (logits.astype(np.float64) - float(logits.max())) / temperature
        )
    if not np.isfinite(weights).all():
        raise StepFailed("the model's logits are no numbers")
    return weights


def _drawn(reached: npt.NDArray[np.float64], share: float) -> int:
    """The first place at which the sums ``reached`` go beyond ``share`` (0 to 1) of the last."""
    place = int(np.searchsorted(reached, share * reached[-1], side="right"))
    return min(place, len(reached) - 1)

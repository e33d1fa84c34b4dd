"""Gradients through a model of which one decoder layer at a time is in memory: all texts go up
through the layers, and their gradients come down again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from phipipe.errors import StepFailed
from phipipe.models.layerwise import Layerwise, Pass

Weights = Mapping[str, torch.Tensor]


def up(model: Layerwise, i: int, weights: Weights, passes: Sequence[Pass]) -> list[torch.Tensor]:
    """Take ``passes`` through layer ``i`` with these ``weights``. Returns what reached it.

    Raises:
        StepFailed: what leaves it is no number.
    """
    reached = [one.hidden.clone() for one in passes]
    for one in passes:
        one.hidden = model.through(i, weights, one)
        if not bool(one.hidden.isfinite().all()):
            raise StepFailed(f"what leaves layer {i} is no number: the calibration text breaks it")
    return reached


def down(
    model: Layerwise,
    i: int,
    weights: Weights,
    chosen: Sequence[str],
    passes: Sequence[Pass],
    reached: Sequence[torch.Tensor],
    gradients: list[torch.Tensor],
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Take ``gradients``, one for each pass, back through layer ``i``, which ``reached`` what it
    was given on the way up: those of what leaves it become those of what reaches it. Yields for
    each pass the gradients of the ``chosen`` weights."""
    leaves = {key: weights[key].detach().requires_grad_() for key in chosen}
    held = {key: tensor.detach() for key, tensor in weights.items()} | leaves
    for k, one in enumerate(passes):
        given = reached[k].detach().requires_grad_()
        with torch.enable_grad():
            left = model.through(i, held, Pass(given, one.calls, one.cache))
        gradients[k], *found = torch.autograd.grad(left, [given, *leaves.values()], gradients[k])
        yield tuple(found)

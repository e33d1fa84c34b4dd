"""Rounding of matrices on what reaches them, beside what the original has in their place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce

import torch

from phipipe.algorithms import gptq, rounding
from phipipe.algorithms.gptq import Driven, Shift
from phipipe.algorithms.lattice import Matrix
from phipipe.algorithms.rounding import Grid
from phipipe.errors import StepFailed
from phipipe.models.layerwise import Layerwise, Pass
from phipipe.models.products import product

Side = list[torch.Tensor]  # some texts each
_After = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]


def original_sides(
    model: Layerwise, i: int, weights: Mapping[str, torch.Tensor], passes: Sequence[Pass]
) -> dict[str, Side]:
    """Take ``passes`` of the original through layer ``i``. Returns what it has at each matrix, by
    the name of its weight in the layer: the inputs [tokens, columns], or, where they are fewer
    numbers, the outputs without bias [tokens, rows]."""
    sides: dict[str, Side] = {}

    def noted(key: str) -> _After:
        rows, columns = weights[key].shape
        bias = weights.get(key.removesuffix("weight") + "bias")

        def note(_: torch.nn.Module, given: tuple[torch.Tensor, ...], left: torch.Tensor) -> None:
            side = given[0] if rows >= columns else left if bias is None else left - bias
            sides.setdefault(key, []).append(side.flatten(0, -2))

        return note

    with ExitStack() as hooks:
        for key, module in model.linears(i).items() if passes else ():
            hooks.enter_context(module.register_forward_hook(noted(key)))
        for one in passes:
            one.hidden = model.through(i, weights, one)
    return sides


class Reached:
    """Rounds matrices by ``method``, "search" or "gptq", on the inputs that reach them. Matrices
    of the same inputs share what is computed of these."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._inputs: Callable[[], torch.Tensor | None] = lambda: None
        self._squares = torch.empty(0)
        self._known: Driven | None = None
        self._shift: Shift | None = None

    def rounded(
        self, weight: torch.Tensor, grid: Grid, inputs: torch.Tensor, side: Side, where: str
    ) -> Matrix:
        """The ``weight`` [rows, columns] on its ``inputs`` [texts, tokens, columns]; ``side`` is
        empty for the original's own, and else afterwards.

        Raises:
            StepFailed: what reaches ``where`` is no number.
        """
        rows = inputs.flatten(0, -2)
        if self._inputs() is not inputs:
            self._take(inputs, rows, where)
        if self._known is None:
            return rounding.searched(weight, self._squares, grid)
        shift = self._to_original(weight, rows, side)
        side.clear()  # hundreds of MiB
        return gptq.learned(weight, grid, self._known, shift)

    def _take(self, inputs: torch.Tensor, rows: torch.Tensor, where: str) -> None:
        self._inputs, self._known, self._shift = weakref.ref(inputs), None, None
        sums = torch.linalg.vector_norm(rows, dim=0).square_()
        self._squares = sums / len(rows)
        # Twice, since sums of products end a little otherwise in another order.
        if not bool((2 * sums).isfinite().all()):
            raise StepFailed(f"what reaches {where} is no number: the calibration text breaks it")
        if self._method == "gptq":
            self._known = gptq.driven(rows)

    def _to_original(self, weight: torch.Tensor, rows: torch.Tensor, side: Side) -> Shift | None:
        """What moves the ``weight`` so that it gives on these inputs what the original gives."""
        assert self._known
        if not side:
            return None
        parts = zip(side, rows.split([len(part) for part in side]), strict=True)
        one = side[0].shape[1] != weight.shape[1]
        if one or self._shift is None:
            across = reduce(torch.Tensor.add_, (product(theirs.T, own) for theirs, own in parts))
            if one:
                return gptq.shift_of_one(self._known, across, weight)
            self._shift = gptq.shift_of_any(self._known, across)
        return self._shift

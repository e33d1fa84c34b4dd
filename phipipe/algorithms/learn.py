"""Weights learned once for every runtime, one decoder layer in memory at a time.

With "gptq" all tokens go through the model twice, side by side: through the original, and through
what is rounded so far. Each matrix is made to give on the inputs that it will really get the
outputs that the original gave on its own, so that errors of earlier layers are made up for in
later ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from phipipe import progress
from phipipe.algorithms import lattice, rounding, signround
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.algorithms.reached import Reached, Side, original_sides
from phipipe.algorithms.rounding import Grid
from phipipe.models import linears
from phipipe.models.layerwise import Hook, Layerwise, Pass, hooked
from phipipe.steps import Inputs, Params

_TOGETHER = 4096  # tokens of the original that go through a layer at a time
_ASIDE = "signround"  # what it learned, until the other matrices are rounded, too
Weights = dict[str, torch.Tensor]


def learn(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the matrices named in ``params["widths"]`` (bits, group size) of ``inputs["source"]``,
    rounded as ``params["learn"]`` says, as a folder of ``lattice``; with ``params["positive"]`` no
    scale is below 0.

    All but "round" learn from ``inputs["calibration"]``. With "signround", which takes
    ``params["iterations"]``, what auto-round cannot learn is as "search" has it. Layers that
    ``out`` has already are taken as they are. Bytes are the same for the same inputs, processor
    and number of cores; with another number, or on a GPU, sums end otherwise in their last digits,
    some codes with them, and the weights are as good. So neither is in the step's key; what is
    made of the weights has their content in its own.

    Raises:
        StepFailed: what reaches a layer is no number; it names the layer.
        SourceError: a weight of the original is none.
    """
    method: str = params["learn"]
    grids = {
        name: Grid(bits=bits, group_size=size, positive=params.get("positive", False))
        for name, (bits, size) in params["widths"].items()
    }
    given = _signround(inputs, grids, params, out) if method == "signround" else {}
    model = Layerwise(inputs["source"], learns=True)
    windows: Sequence[Sequence[int]] = []
    if method != "round":
        windows = np.load(inputs["calibration"] / "tokens.npy").tolist()
    with torch.inference_mode():
        _Learner(model, grids, method, out, given).run(windows)
    shutil.rmtree(out / _ASIDE, ignore_errors=True)
    lattice.finish(out, {"learn": method})


def _signround(
    inputs: Inputs, grids: Mapping[str, Grid], params: Params, out: Path
) -> Mapping[str, Matrix]:
    """What auto-round makes of the matrices that it can learn, kept in a folder of ``out``."""
    aside = out / _ASIDE
    if not signround.learnable(grids):
        return {}
    if not lattice.has(aside, 0):
        iterations = params["iterations"]
        signround.learn(inputs["source"], inputs["calibration"], grids, iterations, aside)
    stored = Lattice(aside)
    return {name: stored[name] for name in stored.names}


class _Learner:
    """``given`` has those matrices that are learned already."""

    def __init__(
        self,
        model: Layerwise,
        grids: Mapping[str, Grid],
        method: str,
        out: Path,
        given: Mapping[str, Matrix],
    ) -> None:
        self._model, self._grids, self._out, self._given = model, grids, out, given
        self._method, self._carries = method, method == "gptq"

    def run(self, windows: Sequence[Sequence[int]]) -> None:
        """Round layer by layer, then the head and the embedding."""
        count = len(self._model.layers)
        texts = self._model.enter_together(windows) if windows else None
        originals = self._originals(windows) if self._carries else []
        for i in range(count):
            progress.report(i, count, "layers")
            weights = self._model.weights(i, written=self._carries)
            sides = original_sides(self._model, i, weights, originals)
            if not lattice.has(self._out, i):
                lattice.write(self._out, i, self._layer(i, weights, texts, sides))
            else:
                self._take(i, weights, texts)
        if not lattice.has(self._out, count):
            lattice.write(self._out, count, self._ends(texts, originals))

    def _originals(self, windows: Sequence[Sequence[int]]) -> list[Pass]:
        """A few texts at a time: nothing of them has to be in memory together."""
        step = max(1, _TOGETHER // len(windows[0]))
        return [
            self._model.enter_together(windows[start : start + step])
            for start in range(0, len(windows), step)
        ]

    def _take(self, i: int, weights: Weights, texts: Pass | None) -> None:
        """Go on through a layer that was learned before."""
        stored = Lattice(self._out)
        for key in weights if self._carries else ():
            if (name := _name(i, key)) in self._grids:
                _become(weights[key], stored[name])
        if texts:
            texts.hidden = self._model.through(i, weights, texts)

    def _layer(
        self, i: int, weights: Weights, texts: Pass | None, sides: dict[str, Side]
    ) -> dict[str, Matrix]:
        """The layer's matrices: each is rounded when its inputs reach it, and with "gptq" ``texts``
        go on through what became of it."""
        learned = {n: matrix for n, matrix in self._given.items() if linears.layer_of(n) == i}
        names = {key: name for key in weights if (name := _name(i, key)) in self._grids}
        if not texts:
            return learned | {
                name: rounding.plain(weights[key], self._grids[name]) for key, name in names.items()
            }
        reached = Reached(self._method)

        def rounds(key: str) -> Hook:
            def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                side, grid = sides.pop(key, []), self._grids[names[key]]
                matrix = reached.rounded(weights[key], grid, given[0], side, f"layer {i}")
                learned[names[key]] = matrix
                if self._carries:
                    _become(weights[key], matrix)

            return hook

        modules = self._model.linears(i)
        open_ = {key: modules[key] for key, name in names.items() if name not in learned}
        with hooked(open_, rounds):
            texts.hidden = self._model.through(i, weights, texts)
        return learned

    def _ends(self, texts: Pass | None, originals: Sequence[Pass]) -> dict[str, Matrix]:
        """The head, and the embedding, whose rows nothing drives more than others."""
        learned = {}
        tied = linears.HEAD not in self._grids and self._model.tied
        for name in (linears.HEAD, linears.EMBEDDING):
            if name not in self._grids:
                continue
            head, grid = name == linears.HEAD or tied, self._grids[name]
            table = self._model.table(head=head)
            if not texts:
                learned[name] = rounding.plain(table, grid)
            elif not head:
                learned[name] = rounding.searched(table, table.new_ones(table.shape[1]), grid)
            else:
                # What the head wants of a table that it shares would move the embedding, too.
                asked = [] if tied else originals
                side = [self._model.head_inputs(one).flatten(0, -2) for one in asked]
                inputs = self._model.head_inputs(texts)
                learned[name] = Reached(self._method).rounded(table, grid, inputs, side, "the head")
        return learned


def _become(weight: torch.Tensor, matrix: Matrix) -> None:
    """Make the ``weight`` what ``matrix`` stands for, exactly."""
    codes, scales = (
        torch.from_numpy(part).to(weight.device) for part in (matrix.codes, matrix.scales)
    )
    groups = weight.view(len(weight), scales.shape[1], -1)
    torch.mul(codes.view(groups.shape), scales.float()[..., None], out=groups)


def _name(i: int, key: str) -> str:
    """The matrix that ``key`` names in layer ``i``."""
    return linears.linear_of(f"model.layers.{i}.{key}") or ""

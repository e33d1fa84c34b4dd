"""Weights learned once for every runtime, one decoder layer in memory at a time.

With "gptq" all tokens go through the model twice, side by side: through the original, and through
what is rounded so far. Each matrix is made to give on the inputs that it will really get the
outputs that the original gave on its own, so that errors of earlier layers are made up for in
later ones.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phipipe import progress
from phipipe.algorithms import lattice, rounding, signround
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.algorithms.rounding import Grid
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.models.layerwise import Hook, Layerwise, Pass, hooked
from phipipe.steps import Inputs, Params

DAMPING = 0.01  # of the mean of the products' diagonal: GPTQ's own default
_ASIDE = "signround"  # what it learned, until the other matrices are rounded, too
Weights = dict[str, torch.Tensor]


def learn(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the matrices named in ``params["widths"]`` (bits, group size) of ``inputs["source"]``,
    rounded as ``params["learn"]`` says, as a folder of ``lattice``; with ``params["positive"]`` no
    scale is below 0.

    All but "round" learn from ``inputs["calibration"]``. With "signround", which takes
    ``params["iterations"]``, what auto-round cannot learn is as "search" has it. Layers that
    ``out`` has already are taken as they are. Bytes are the same for the same inputs, machine and
    number of threads.

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
    model = Layerwise(inputs["source"])
    windows: Sequence[Sequence[int]] = []
    if "calibration" in inputs:
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


@dataclass
class _Sums:
    """Over all tokens, of the inputs x of some matrices and those y of the original's: how many,
    x·xᵀ, and (y − x)·xᵀ."""

    count: int = 0
    products: torch.Tensor | None = None
    differences: torch.Tensor | None = None

    def add(self, given: torch.Tensor, original: torch.Tensor | None) -> None:
        rows = given.reshape(-1, given.shape[-1])
        self.count += len(rows)
        self.products = _plus(self.products, rows.T @ rows)
        if original is not None:
            apart = original.reshape(rows.shape) - rows
            self.differences = _plus(self.differences, apart.T @ rows)

    @property
    def squares(self) -> torch.Tensor:
        """The mean square of each input."""
        assert self.products is not None
        return self.products.diagonal() / self.count


def _plus(total: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more if total is None else total.add_(more)


class _Enough(Exception):
    """Raised by a hook: what a layer was run for is known."""


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
        self._model, self._grids, self._method, self._out = model, grids, method, out
        self._given = given
        self._firsts: list[list[str]] = []

    def run(self, windows: Sequence[Sequence[int]]) -> None:
        """Round layer by layer, then the head and the embedding."""
        count = len(self._model.layers)
        passes = self._model.enter(windows)
        originals = self._model.enter(windows) if self._method == "gptq" else []
        for i in range(count):
            progress.report(i, count, "layers")
            weights = self._model.weights(i)
            original = {name: tensor.clone() for name, tensor in weights.items()}
            if lattice.has(self._out, i):
                self._take(i, weights)
            else:
                lattice.write(self._out, i, self._layer(i, weights, original, passes, originals))
            if self._method != "gptq":
                weights = original
            for one in passes:
                one.hidden = self._model.through(i, weights, one)
            for one in originals:
                one.hidden = self._model.through(i, original, one)
        if not lattice.has(self._out, count):
            lattice.write(self._out, count, self._ends(passes, originals))

    def _take(self, i: int, weights: Weights) -> None:
        """Put what was learned before in the place of the layer's ``weights``."""
        stored = Lattice(self._out)
        for key in weights:
            name = _name(i, key)
            if name in self._grids:
                weights[key] = torch.from_numpy(stored[name].dense())

    def _layer(
        self,
        i: int,
        weights: Weights,
        original: Weights,
        passes: Sequence[Pass],
        originals: Sequence[Pass],
    ) -> dict[str, Matrix]:
        """The layer's matrices; ``weights`` become those that they stand for."""
        learned = {n: matrix for n, matrix in self._given.items() if linears.layer_of(n) == i}
        for keys in self._shared(i, original, passes):
            open_ = self._grids.keys() - learned
            chosen = [key for key in keys if _name(i, key) in open_]
            if not chosen:
                continue
            sums = self._sums(i, keys[0], weights, original, passes, originals)
            rounds = self._rounder(sums, f"layer {i}")
            for key in chosen:
                matrix = rounds(weights[key], self._grids[_name(i, key)])
                learned[_name(i, key)] = matrix
                weights[key] = torch.from_numpy(matrix.dense())
        return learned

    def _shared(self, i: int, weights: Weights, passes: Sequence[Pass]) -> list[list[str]]:
        """Names of the layer's matrices in the order in which they are used, those of one input
        together."""
        if not passes:
            return [[key] for key in weights if _name(i, key) in self._grids]
        if not self._firsts:
            seen: list[tuple[torch.Tensor, list[str]]] = []

            def note(key: str) -> Hook:
                def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                    if seen and seen[-1][0] is given[0]:
                        seen[-1][1].append(key)
                    else:
                        seen.append((given[0], [key]))

                return hook

            with hooked(self._model.linears(i), note):
                self._model.through(i, weights, passes[0])
            self._firsts = [keys for _, keys in seen]
        return self._firsts

    def _sums(
        self,
        i: int,
        key: str,
        weights: Weights,
        original: Weights,
        passes: Sequence[Pass],
        originals: Sequence[Pass],
    ) -> _Sums:
        """Of what reaches the matrix ``key``."""
        sums, pairs = _Sums(), _beside(passes, originals)
        module = {key: self._model.linears(i)[key]}
        for one, other in zip(passes, pairs, strict=True):
            given = self._reaching(i, module, weights, one)
            theirs = self._reaching(i, module, original, other) if other else None
            sums.add(given, theirs)
        return sums

    def _reaching(
        self, i: int, module: Mapping[str, torch.nn.Module], weights: Weights, one: Pass
    ) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def catch(_: str) -> Hook:
            def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                found.append(given[0])
                raise _Enough

            return hook

        with hooked(module, catch), contextlib.suppress(_Enough):
            self._model.through(i, weights, one)
        return found[0]

    def _rounder(self, sums: _Sums, where: str) -> Callable[[torch.Tensor, Grid], Matrix]:
        """What rounds a matrix whose inputs are those of ``sums``.

        Raises:
            StepFailed: they are no numbers.
        """
        if not sums.count:
            return rounding.plain
        products, differences = sums.products, sums.differences
        assert products is not None
        if not bool(products.diagonal().isfinite().all()):
            raise StepFailed(f"what reaches {where} is no number: the calibration text breaks it")
        if self._method in ("search", "signround"):
            return lambda weight, grid: rounding.searched(weight, sums.squares, grid)
        carried = rounding.carrier(products, DAMPING)

        def rounds(weight: torch.Tensor, grid: Grid) -> Matrix:
            if differences is not None:
                weight = rounding.moved(weight, products, differences, DAMPING)
            scales = rounding.searched_scales(weight, sums.squares, grid)
            return rounding.matrix(rounding.gptq(weight, carried, scales, grid), scales, grid)

        return rounds

    def _ends(self, passes: Sequence[Pass], originals: Sequence[Pass]) -> dict[str, Matrix]:
        """The head, and the embedding, whose rows nothing drives more than others."""
        learned = {}
        tied = linears.HEAD not in self._grids and self._model.tied
        for name in (linears.HEAD, linears.EMBEDDING):
            if name not in self._grids:
                continue
            head = name == linears.HEAD or tied
            sums = self._head_sums(passes, originals) if head else _Sums()
            rounds = self._rounder(sums, "the head")
            if not head and self._method != "round":
                rounds = _evenly
            learned[name] = rounds(self._model.table(head=head), self._grids[name])
        return learned

    def _head_sums(self, passes: Sequence[Pass], originals: Sequence[Pass]) -> _Sums:
        sums = _Sums()
        for one, other in zip(passes, _beside(passes, originals), strict=True):
            theirs = self._model.head_inputs(other) if other else None
            sums.add(self._model.head_inputs(one), theirs)
        return sums


def _beside(passes: Sequence[Pass], originals: Sequence[Pass]) -> Sequence[Pass | None]:
    """What the original has where the rounded model has ``passes``; None where it is not asked."""
    return list(originals) or [None] * len(passes)


def _evenly(weight: torch.Tensor, grid: Grid) -> Matrix:
    """As if all inputs were driven alike."""
    return rounding.searched(weight, torch.ones(weight.shape[1]), grid)


def _name(i: int, key: str) -> str:
    """The matrix that ``key`` names in layer ``i``."""
    return linears.linear_of(f"model.layers.{i}.{key}") or ""

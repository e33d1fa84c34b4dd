"""Scales of learned weights, trained until the rounded model predicts as nearly as it can what the
original does (distillation, Hinton et al., arXiv 1503.02531). Codes stay as they are.

The loss is the mean KL divergence of the rounded model's predictions from the original's, over the
tokens of the calibration text. Of each scale a master is kept in fp32, as a share of the scale that
was learned; the forward pass has it on the lattice, and its gradient goes straight through that
rounding (Bengio et al., arXiv 1308.3432). Steps are Adam's (Kingma & Ba, arXiv 1412.6980).

One decoder layer at a time is in memory (``gradients``). After each pass over the text the
divergence is taken on other windows, from which nothing was learned before either: the scales with
the least are kept, and that may be those from before. Embedding and head keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path

import numpy as np
import torch

from phipipe import progress
from phipipe.algorithms import gradients, lattice, rounding
from phipipe.algorithms.distilled import TOGETHER
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.algorithms.learned import INDEX
from phipipe.files import json_files
from phipipe.models import linears
from phipipe.models.layerwise import Layerwise, Pass
from phipipe.steps import Inputs, Params

PASSES = 6
RATE = 1e-3  # of a scale, by which a move changes it; less and less towards the end
_STATE = "distil.npz"
_KEPT = ("shares", "means", "squares", "best")


def distil(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the folder of ``lattice`` in ``inputs["weights"]``, learned of ``inputs["source"]``,
    with scales that are trained on the tokens in ``inputs["calibration"]`` and judged by those in
    ``inputs["held-out"]``.

    The index says what the divergence on the latter was before and after, in nats. What ``out`` has
    of passes that are done is taken as it is. Bytes are the same as far as ``learn``'s are.

    Raises:
        StepFailed: what leaves a layer is no number; it names the layer.
        SourceError: a weight of the original is none.
    """
    model, stored = Layerwise(inputs["source"], learns=True), Lattice(inputs["weights"])
    with torch.no_grad():
        text, held = (_Text.of(model, inputs[name]) for name in ("calibration", "held-out"))
        training = _Training(model, stored, text, held, out / _STATE)
        training.run()
    for part in range(training.layers + 1):
        lattice.write(out, part, training.best(None if part == training.layers else part))
    learned = json_files.read_object(inputs["weights"] / INDEX)["learn"]
    lattice.finish(out, {"learn": learned, "distil": training.told})
    (out / _STATE).unlink()


@dataclass
class _Scales:
    """Of one matrix [rows, groups], float32: the scales that were learned, what share of them is
    taken, the running means of its gradient and of the gradient's square; and the best so far."""

    learned: torch.Tensor
    shares: torch.Tensor
    means: torch.Tensor
    squares: torch.Tensor
    best: torch.Tensor

    @classmethod
    def of(cls, matrix: Matrix, unit: torch.device) -> _Scales:
        learned = torch.from_numpy(matrix.scales.astype(np.float32)).to(unit)
        zero = torch.zeros_like(learned)
        return cls(learned, torch.ones_like(learned), zero, zero.clone(), learned)

    @property
    def now(self) -> torch.Tensor:
        """On the lattice."""
        return rounding.on_lattice(self.learned * self.shares)

    def move(self, gradient: torch.Tensor, codes: torch.Tensor, rate: float, number: int) -> None:
        """Adam's step ``number``, from 1, against the ``gradient`` of the weight codes × scales."""
        slope = (gradient * codes).view(*self.learned.shape, -1).sum(-1) * self.learned
        self.means.lerp_(slope, 0.1)
        self.squares.lerp_(slope.square(), 0.01)
        mean, square = self.means / (1 - 0.9**number), self.squares / (1 - 0.99**number)
        self.shares -= rate * mean / (square.sqrt() + 1e-12)


class _Student:
    """The model with the weights in ``stored``, its layers' matrices with ``scales`` of their
    own."""

    def __init__(self, model: Layerwise, stored: Lattice) -> None:
        self._model, self.stored = model, stored
        inner = sorted(name for name in stored.names if linears.layer_of(name) is not None)
        self.scales = {name: _Scales.of(stored[name], model.unit) for name in inner}
        table = linears.EMBEDDING if linears.EMBEDDING in stored else None
        self._table = self._dense(table) if table else None
        head = linears.HEAD if linears.HEAD in stored else table if model.tied else None
        weight = {"lm_head.weight": self._dense(head)} if head else {}
        self.head = {**model.head, **weight}

    def _dense(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.stored[name].dense()).to(self._model.unit)

    def enter(self, windows: Sequence[Sequence[int]]) -> list[Pass]:
        """What reaches the first layer of each window."""
        return self._model.enter([self._model.embed(ids, self._table) for ids in windows])

    def codes(self, name: str) -> torch.Tensor:
        """Float32 [rows, columns]."""
        return torch.from_numpy(self.stored[name].codes).to(self._model.unit).float()

    def names(self, i: int) -> dict[str, str]:
        """Key in layer ``i`` → matrix, of those that were learned."""
        named = (
            (key, linears.linear_of(f"model.layers.{i}.{key}")) for key in self._model.linears(i)
        )
        return {key: name for key, name in named if name in self.scales}

    def weights(self, i: int) -> dict[str, torch.Tensor]:
        """Those of layer ``i``, float32."""
        weights = self._model.weights(i)
        for key, name in self.names(i).items():
            scales, codes = self.scales[name].now, self.codes(name)
            groups = codes.view(*scales.shape, -1)
            weights[key] = groups.mul_(scales[..., None]).view(codes.shape)
        return weights


@dataclass
class _Text:
    """Windows of tokens, and of each what the original's head is given, [1, tokens, hidden
    size]."""

    windows: Sequence[Sequence[int]]
    originals: Sequence[Pass]

    @classmethod
    def of(cls, model: Layerwise, folder: Path) -> _Text:
        windows = np.load(folder / "tokens.npy").tolist()
        originals = model.enter(windows)
        for i in range(len(model.layers)):
            gradients.up(model, i, model.weights(i), originals)
        return cls(windows, originals)

    def batches(self) -> list[_Text]:
        """As much as the scales are moved for at a time."""
        each = max(1, TOGETHER // len(self.windows[0]))
        starts = range(0, len(self.windows), each)
        return [_Text(self.windows[i : i + each], self.originals[i : i + each]) for i in starts]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))


class _Training:
    """Of the scales of ``stored`` towards ``model`` on ``text``, judged by ``held``; ``state`` is a
    file for what is done."""

    def __init__(
        self, model: Layerwise, stored: Lattice, text: _Text, held: _Text, state: Path
    ) -> None:
        self._model, self._student, self._state = model, _Student(model, stored), state
        self.layers = len(model.layers)
        self._batches, self._held = text.batches(), held
        self._history: list[float] = []  # divergence before, and after each pass
        self._read()

    def run(self) -> None:
        """All passes that are not done yet."""
        moves = PASSES * len(self._batches)
        if not self._history:
            self._history.append(self._divergence(self._held))
        while len(self._history) <= PASSES:
            done = (len(self._history) - 1) * len(self._batches)
            for number, batch in enumerate(self._batches, done):
                progress.report(number, moves, "moves")
                rate = RATE * (1 + cos(pi * number / moves)) / 2
                self._move(batch, rate, number + 1)
            found = self._divergence(self._held)
            if found < min(self._history):
                for scales in self._student.scales.values():
                    scales.best = scales.now
            self._history.append(found)
            self._write()

    @property
    def told(self) -> dict[str, float]:
        """What the index says."""
        return {"before": self._history[0], "after": min(self._history)}

    def best(self, layer: int | None) -> dict[str, Matrix]:
        """The matrices of ``layer``, of none with None, with the scales that were best."""
        stored, scales = self._student.stored, self._student.scales
        names = [name for name in stored.names if linears.layer_of(name) == layer]
        found = {name: stored[name] for name in names}
        trained = {
            name: lattice.to_scales(scales[name].best.cpu().numpy())
            for name in names
            if name in scales
        }
        return {
            name: replace(one, scales=trained.get(name, one.scales)) for name, one in found.items()
        }

    def _move(self, batch: _Text, rate: float, number: int) -> None:
        """Move the scales against their gradients on ``batch``."""
        passes, reached = self._up(batch)
        pairs = zip(passes, batch.originals, strict=True)
        slopes = [self._slope(*pair, batch.tokens) for pair in pairs]
        for i in reversed(range(self.layers)):
            names, weights = self._student.names(i), self._student.weights(i)
            sums: list[torch.Tensor] = []
            for found in gradients.down(
                self._model, i, weights, list(names), passes, reached[i], slopes
            ):
                sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else [*found]
            for name, total in zip(names.values(), sums, strict=True):
                self._student.scales[name].move(total, self._student.codes(name), rate, number)

    def _up(self, text: _Text) -> tuple[list[Pass], list[list[torch.Tensor]]]:
        """The rounded model's passes through all layers, and what reached each layer."""
        passes = self._student.enter(text.windows)
        reached = [
            gradients.up(self._model, i, self._student.weights(i), passes)
            for i in range(self.layers)
        ]
        return passes, reached

    def _slope(self, one: Pass, original: Pass, tokens: int) -> torch.Tensor:
        """The gradient, of what leaves the last layer, of the mean divergence over ``tokens``."""
        hidden = one.hidden.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._divergences(Pass(hidden, one.calls, one.cache), original).sum() / tokens
        (slope,) = torch.autograd.grad(loss, [hidden])
        return slope

    def _divergences(self, one: Pass, original: Pass) -> torch.Tensor:
        """Of each token, in nats."""
        theirs = self._model.predictions(original)[0].log_softmax(-1)
        ours = self._model.predictions(one, self._student.head)[0].log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1)

    def _divergence(self, text: _Text) -> float:
        """The mean over all tokens."""
        passes, _ = self._up(text)
        pairs = zip(passes, text.originals, strict=True)
        return float(torch.cat([self._divergences(*pair) for pair in pairs]).double().mean())

    def _read(self) -> None:
        """Take up what an earlier run has done."""
        if not self._state.is_file():
            return
        with np.load(self._state) as kept:
            self._history = kept["history"].tolist()
            for name, scales in self._student.scales.items():
                for part in _KEPT:
                    done = torch.from_numpy(kept[f"{name}.{part}"])
                    setattr(scales, part, done.to(self._model.unit))

    def _write(self) -> None:
        aside = self._state.with_suffix(".new")
        arrays = {
            f"{name}.{part}": getattr(scales, part).cpu().numpy()
            for name, scales in self._student.scales.items()
            for part in _KEPT
        }
        with aside.open("wb") as stream:
            np.savez(stream, history=np.array(self._history), **arrays)
        aside.replace(self._state)

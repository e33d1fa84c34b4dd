"""How much a model's predictions suffer from an error in each of its weights: no backend is in it.

With P the original's distribution of the next token, a small change ΔW of a weight moves the mean
KL divergence from P by about ½ · F · ΔW². F is the Fisher information: the mean over tokens of the
squared gradient of −ln P(y), y drawn from P itself (Kunstner et al., arXiv 1905.12558, say why it
is drawn). Of a matrix the sums of F along rows and along columns are kept; their product over the
whole sum stands for F (Shazeer & Stern, arXiv 1804.04235, keep second moments so).

One decoder layer at a time is in memory (``gradients``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from phipipe import progress
from phipipe.algorithms import gradients
from phipipe.algorithms.sensitivity import CHECKS, SENSITIVITY
from phipipe.models import linears
from phipipe.models.layerwise import Hook, Layerwise, Pass, hooked
from phipipe.steps import Inputs, Json, Params

SEED = 20
CHECKED, WINDOWS = 8, 2  # matrices that noise is tried in, and windows that hear it
NOISE = 0.08  # size of the noise, beside that of the weights: about what 4 bits do


def measure(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: F of each matrix of ``inputs["source"]``, on the first ``params["tokens"]`` tokens of
    ``inputs["calibration"]``.

    Writes ``sensitivity.npz``: for each matrix ``NAME.rows`` float32 [rows] and ``NAME.columns``
    float32 [columns], the sums of F; ``NAME.squares`` float32 [columns], the mean square of each of
    its inputs. And ``sensitivity.json``: what noise in a few matrices was predicted to cost, and
    what it did cost. Bytes are the same for the same inputs, machine and number of threads, on the
    CPU; on a GPU, figures are to 1e-4 of their size, since the same tokens and noise are drawn.

    Raises:
        StepFailed: what leaves a layer is no number; it names the layer.
        SourceError: a weight of the original is none.
    """
    tokens = np.load(inputs["calibration"] / "tokens.npy")
    windows = tokens[: max(1, int(params["tokens"]) // tokens.shape[1])]
    torch.manual_seed(SEED)
    with torch.no_grad():
        measuring = _Measuring(Layerwise(inputs["source"], learns=True), windows.tolist())
        measuring.up()
        measuring.down()
        checks = measuring.checks()
    np.savez(out / SENSITIVITY, **measuring.arrays())  # type: ignore[arg-type]
    about = {"tokens": int(windows.size), "checks": checks}
    (out / CHECKS).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


@dataclass
class _Sums:
    """Of one matrix, over all tokens: F along rows and along columns, the squares of its inputs,
    and its own; float32."""

    rows: torch.Tensor
    columns: torch.Tensor
    squares: torch.Tensor
    energy: float = 0.0

    @classmethod
    def of(cls, weight: torch.Tensor) -> _Sums:
        rows, columns = weight.shape
        return cls(
            weight.new_zeros(rows),
            weight.new_zeros(columns),
            weight.new_zeros(columns),
            float(weight.square().mean()),
        )

    def add(self, gradient: torch.Tensor) -> None:
        """The ``gradient`` [rows, columns] of one window, whose memory is taken."""
        squared = gradient.square_()
        self.rows += squared.sum(1)
        self.columns += squared.sum(0)


class _Measuring:
    def __init__(self, model: Layerwise, windows: Sequence[Sequence[int]]) -> None:
        self._model, self._windows = model, windows
        self._count = len(model.layers)
        self._tokens = sum(map(len, windows))
        self._passes = model.enter(windows)
        self._before: list[list[torch.Tensor]] = []  # what reached each layer
        self._gradients: list[torch.Tensor] = []  # of what left the layer above
        self._sums: dict[str, _Sums] = {}

    def up(self) -> None:
        """All windows through all layers."""
        for i in range(self._count):
            progress.report(i, 3 * self._count, "layers")
            weights = self._model.weights(i)
            self._before.append(gradients.up(self._model, i, weights, self._passes))

    def down(self) -> None:
        """The gradients from the head to the embedding."""
        for one in self._passes:
            self._gradients.append(self._through_head(one))
        for i in reversed(range(self._count)):
            progress.report(2 * self._count - i, 3 * self._count, "layers")
            self._through_layer(i)
        self._through_embedding()

    def _through_head(self, one: Pass) -> torch.Tensor:
        """The gradient of what leaves the last layer."""
        head = {name: tensor.detach() for name, tensor in self._model.head.items()}
        weight = head["lm_head.weight"].requires_grad_()
        one.hidden = one.hidden.clone().requires_grad_()
        with torch.enable_grad():
            scores = self._model.predictions(one, head)[0].log_softmax(-1)
        # Of one generator, wherever the layers are.
        drawn = torch.multinomial(scores.exp().cpu(), 1).to(scores.device)
        self._heard(linears.HEAD, weight, self._model.head_inputs(one)[0])
        with torch.enable_grad():
            loss = -scores.gather(1, drawn).sum()
        hidden, gradient = torch.autograd.grad(loss, [one.hidden, weight])
        one.hidden = one.hidden.detach()
        self._sums[linears.HEAD].add(gradient)
        return hidden

    def _heard(self, name: str, weight: torch.Tensor, given: torch.Tensor) -> None:
        """Matrix ``name`` multiplies what it is ``given``, [tokens, columns]."""
        if name not in self._sums:
            self._sums[name] = _Sums.of(weight.detach())
        self._sums[name].squares += given.detach().square().sum(0)

    def _through_layer(self, i: int) -> None:
        weights = self._model.weights(i)
        names = {key: name for key in weights if (name := _name(i, key))}
        modules = {key: module for key, module in self._model.linears(i).items() if key in names}

        def hear(key: str) -> Hook:
            return lambda _, given: self._heard(names[key], weights[key], given[0].flatten(0, -2))

        with hooked(modules, hear):
            for found in gradients.down(
                self._model,
                i,
                weights,
                list(modules),
                self._passes,
                self._before[i],
                self._gradients,
            ):
                for key, gradient in zip(modules, found, strict=True):
                    self._sums[names[key]].add(gradient)

    def _through_embedding(self) -> None:
        """Rows of the embedding are read as often as their tokens come: all count alike here."""
        table = self._model.table(head=False)
        sums = self._sums[linears.EMBEDDING] = _Sums.of(table)
        for ids, gradient in zip(self._windows, self._gradients, strict=True):
            seen, places = torch.tensor(ids, device=table.device).unique(return_inverse=True)
            whole = table.new_zeros(len(seen), table.shape[1]).index_add_(0, places, gradient[0])
            sums.columns += whole.square().sum(0)
        sums.squares += self._tokens / len(table)  # of a row that is one where its token stands
        sums.rows += float(sums.columns.sum()) / len(sums.rows)

    def checks(self) -> list[Json]:
        """What noise in a few matrices of the layers was predicted to cost, and what it costs."""
        inner = [name for name in self._sums if linears.layer_of(name) is not None]
        inner.sort(key=lambda name: (linears.layer_of(name), name))
        stride = max(1, len(inner) // CHECKED)
        chosen = inner[stride // 2 :: stride][:CHECKED]
        costs = _noised(self._model, chosen, self._before, self._passes[:WINDOWS], self._sums)
        return [
            {"name": name, "predicted": self._predicted(name), "measured": cost}
            for name, cost in costs.items()
        ]

    def _predicted(self, name: str) -> float:
        """Noise of this size costs ½ · Σ F · noise²."""
        sums = self._sums[name]
        return 0.5 * NOISE**2 * sums.energy * float(sums.rows.sum()) / self._tokens

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Means over tokens, as the file holds them."""
        return {
            f"{name}.{part}": (getattr(sums, part) / self._tokens).cpu().numpy()
            for name, sums in sorted(self._sums.items())
            for part in ("rows", "columns", "squares")
        }


def _noised(
    model: Layerwise,
    names: Sequence[str],
    before: Sequence[Sequence[torch.Tensor]],
    passes: Sequence[Pass],
    sums: Mapping[str, _Sums],
) -> dict[str, float]:
    """Matrix → the mean KL divergence that noise in it costs, in nats."""
    at = {name: linears.layer_of(name) for name in names}
    going: dict[str, list[Pass]] = {}
    for i in range(len(model.layers)):
        progress.report(2 * len(model.layers) + i, 3 * len(model.layers), "layers")
        weights = model.weights(i)
        for name in [name for name in names if at[name] == i]:
            going[name] = [
                Pass(hidden, one.calls, one.cache)
                for hidden, one in zip(before[i], passes, strict=False)
            ]
        for name, others in going.items():
            noisy = _with_noise(weights, i, name, sums[name].energy) if at[name] == i else weights
            for one in others:
                one.hidden = model.through(i, noisy, one)
    scores = [model.predictions(one)[0].log_softmax(-1) for one in passes]
    return {name: _divergence(model, scores, others) for name, others in going.items()}


def _with_noise(
    weights: Mapping[str, torch.Tensor], i: int, name: str, energy: float
) -> dict[str, torch.Tensor]:
    key = next(key for key in weights if _name(i, key) == name)
    noise = torch.randn(weights[key].shape).to(weights[key].device) * (NOISE * energy**0.5)
    return {**weights, key: weights[key] + noise}


def _divergence(model: Layerwise, scores: Sequence[torch.Tensor], others: Sequence[Pass]) -> float:
    rows = []
    for original, one in zip(scores, others, strict=True):
        noisy = model.predictions(one)[0].log_softmax(-1)
        rows.append((original.exp() * (original - noisy)).sum(-1))
    return float(torch.cat(rows).mean())


def _name(i: int, key: str) -> str | None:
    """The matrix that ``key`` names in layer ``i``; None: it is none."""
    return linears.linear_of(f"model.layers.{i}.{key}")

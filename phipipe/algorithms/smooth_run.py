"""The step that folds AWQ's scales into a checkpoint, layer by layer (in the toolchain of torch).

What comes out is an ordinary checkpoint of the same model: every format that rounds weights can
start from it, K-quants and the formats of NPUs too, which have no place for scales of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from phipipe import progress
from phipipe.algorithms import awq, folds, smooth
from phipipe.algorithms.awq import Exponents, Floats
from phipipe.algorithms.folds import Fold
from phipipe.errors import SourceError
from phipipe.models import checkpoints
from phipipe.models.layerwise import Layerwise
from phipipe.models.layerwise_memory import TOGETHER
from phipipe.models.tensors import rewrite
from phipipe.steps import Inputs, Params

_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
Scales = Mapping[tuple[int, str], list[tuple[Fold, Exponents]]]  # layer, maker or reader → folds


def fold(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, with AWQ's scales folded in, learned from the
    tokens of ``inputs["calibration"]``, the first ``TOGETHER`` of them.

    ``params``: group (in which weights are rounded while scales are chosen; 0: whole rows), widen
    (store all weights in fp32). Without widen a tensor keeps its dtype wherever that holds it
    exactly.

    Raises:
        SourceError: NaN or infinity reaches a linear.
    """
    source = inputs["source"]
    windows = np.load(inputs["calibration"] / "tokens.npy")
    windows = windows[: max(1, TOGETHER // windows.shape[1])]
    checkpoint = checkpoints.read(source)
    model = folds.of(checkpoint)
    found: dict[tuple[int, str], list[tuple[Fold, Exponents]]] = {}
    for i, layer in enumerate(_searched(source, windows.tolist(), model, params["group"])):
        for one, exponents in zip(model, layer, strict=True):
            for name in (one.maker, *one.readers):
                found.setdefault((i, name), []).append((one, exponents))
    widen = bool(params["widen"])

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: _folded(name, tensor, found, widen)}

    settings = {smooth.dtype_key(checkpoint.config): "float32"} if widen else {}
    rewrite(source, out, change, settings)


class _Inputs:
    """What reached one linear: the mean of the magnitudes, and every so many tokens themselves."""

    def __init__(self, step: int) -> None:
        self._step, self._seen = step, 0
        self._total: torch.Tensor | None = None
        self._rows: list[torch.Tensor] = []

    def add(self, _linear: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """The linear reads ``given``, one tensor [1, tokens, inputs]."""
        rows = given[0].flatten(0, -2)
        total = rows.abs().sum(0, dtype=torch.float64)
        self._total = total if self._total is None else self._total + total
        self._rows.append(rows[-self._seen % self._step :: self._step].clone())
        self._seen += len(rows)

    def finished(self, name: str) -> tuple[Floats, Floats]:
        """Mean magnitudes [inputs] and sampled inputs [tokens, inputs] of the linear ``name``."""
        assert self._total is not None, f"nothing ran through {name}"
        if not self._total.isfinite().all():
            raise SourceError(
                f"the original computes no numbers: NaN or infinity reaches `{name}`",
                hint="try the checkpoint with transformers, and save or download it again",
            )
        mean = (self._total / self._seen).float()
        return mean.cpu().numpy(), torch.cat(self._rows).cpu().numpy()


def _searched(
    source: Path, windows: Sequence[Sequence[int]], model: Sequence[Fold], group: int
) -> Iterator[list[Exponents]]:
    """Layer by layer, the scales of each fold."""
    step = awq.stride(sum(map(len, windows)), len(windows[0]), smooth.SAMPLE)
    original = Layerwise(source, learns=True)
    with torch.inference_mode():
        passes = original.enter(windows)
        for i, layer in enumerate(original.layers):
            weights = original.weights(i)
            read = {fold.readers[0]: _Inputs(step) for fold in model}
            hooks = [
                layer.get_submodule(name).register_forward_pre_hook(inputs.add)
                for name, inputs in read.items()
            ]
            for one in passes:
                one.hidden = original.through(i, weights, one)
            for hook in hooks:
                hook.remove()
            yield [_found(fold, f"model.layers.{i}", read, weights, group) for fold in model]
            progress.report(i + 1, len(original.layers), "layers")


def _found(
    fold: Fold,
    layer: str,
    read: Mapping[str, _Inputs],
    weights: Mapping[str, torch.Tensor],
    group: int,
) -> Exponents:
    """The scales of a fold of ``layer``, by what its readers ``read``."""
    reader = fold.readers[0]
    mean, sample = read[reader].finished(f"{layer}.{reader}")
    rows = np.concatenate([_some(weights[f"{name}.weight"]) for name in fold.readers])
    return awq.search(fold, mean, sample, rows, group).exponents


def _some(weight: torch.Tensor) -> Floats:
    """At most ``smooth.ROWS`` of a weight's rows."""
    rows: Floats = weight[:: -(-len(weight) // smooth.ROWS)].cpu().numpy()
    return rows


def _folded(name: str, tensor: torch.Tensor, found: Scales, widen: bool) -> torch.Tensor:
    """A tensor of the checkpoint with all scales that touch it, in fp32 if that is asked for or
    if its own dtype does not hold them exactly."""
    wide, match = tensor.float(), _NAME.fullmatch(name)
    for fold, exponents in found.get((int(match[1]), match[2]), []) if match else []:
        if match and match[2] == fold.maker:
            wide = _made(wide, fold, exponents)
        elif match and match[3] == "weight":
            scales = torch.from_numpy(fold.repeated(exponents)).int()
            wide = torch.ldexp(wide, scales)
    narrow = wide.to(tensor.dtype)
    return wide if widen or not narrow.float().equal(wide) else narrow


def _made(wide: torch.Tensor, fold: Fold, exponents: Exponents) -> torch.Tensor:
    """A maker's weight or bias with the rows of ``fold`` divided by its scales."""
    scales = torch.from_numpy(-exponents).int()
    scales = scales[:, None] if wide.dim() == 2 else scales
    changed = wide.clone()
    rows = slice(fold.first, fold.first + fold.count)
    changed[rows] = torch.ldexp(wide[rows] + fold.plus, scales) - fold.plus
    return changed

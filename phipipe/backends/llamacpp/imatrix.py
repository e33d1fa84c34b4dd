"""llama.cpp's importance matrix, computed on the original model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch

from phipipe import progress
from phipipe.backends.llamacpp import IMATRIX
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.models.layerwise import Hook, Layerwise, Pass, hooked
from phipipe.models.layerwise_memory import TOGETHER
from phipipe.steps import Inputs, Params


def imatrix(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: mean square of every linear's inputs over the calibration tokens, as ``imatrix.npz``.

    ``inputs``: source, calibration. Keys are GGUF's tensor names, values float32 [inputs of that
    linear]. The same sums that llama.cpp's own tool takes (tools/imatrix: sum of squares / number
    of tokens), but from fp32 activations of the original.

    Raises:
        StepFailed: a linear has no name in GGUF, or some input never was non-zero.
    """
    model = Layerwise(inputs["source"], learns=True)
    windows = np.load(inputs["calibration"] / "tokens.npy")
    rename = _names(model.config.model_type, model.config.num_hidden_layers)
    vectors = {
        f"{rename(name)}.weight": (total / windows.size).cpu().numpy()
        for name, total in _squares(model, windows.tolist()).items()
    }
    for name, values in vectors.items():
        if not np.isfinite(values).all() or not values.any():
            raise StepFailed(f"the calibration text drives nothing in `{name}`")
    if not vectors:
        raise StepFailed("the model has no linears")
    np.savez(out / IMATRIX, **{name: row.astype(np.float32) for name, row in vectors.items()})


def _squares(model: Layerwise, windows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Each linear → the sum of the squares of its inputs over ``windows`` of tokens, in
    fp64."""
    sums: dict[str, torch.Tensor] = {}

    def adder(name: str) -> Hook:
        return lambda _, given: add(name, given[0])

    def add(name: str, given: torch.Tensor) -> None:
        squares = given.reshape(-1, given.shape[-1]).double().square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    group, count = max(1, TOGETHER // len(windows[0])), len(model.layers)
    for start in range(0, len(windows), group):
        with torch.inference_mode():
            passes = model.enter(windows[start : start + group])
            for i in range(count):
                _through(model, i, passes, adder)
                done = start * count + (i + 1) * len(passes)
                progress.report(done, len(windows) * count, "layers of windows")
            inputs = [model.head_inputs(one) for one in passes]
        for given in inputs:
            add(linears.HEAD, given)
    return sums


def _through(
    model: Layerwise, i: int, passes: Sequence[Pass], adder: Callable[[str], Hook]
) -> None:
    """Take ``passes`` through layer ``i``; ``adder`` hears what its linears are given."""
    weights = model.weights(i)
    named = {
        f"model.layers.{i}.{key.removesuffix('.weight')}": module
        for key, module in model.linears(i).items()
    }
    with hooked(named, adder):
        for one in passes:
            one.hidden = model.through(i, weights, one)


def _names(model_type: str, layers: int) -> Callable[[str], str]:
    """A function from transformers' module names to GGUF's tensor names."""
    by_name = {name.replace("-", ""): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    # types whose layers the converter writes as another architecture's
    by_name |= {"phi": gguf.MODEL_ARCH.PHI2, "mistral": gguf.MODEL_ARCH.LLAMA}
    architecture = by_name.get(model_type.replace("_", ""))
    if architecture is None:
        raise StepFailed(f"GGUF has no names for the layers of `{model_type}`")
    table = gguf.get_tensor_name_map(architecture, layers)

    def rename(name: str) -> str:
        known = table.get_name(name)
        if known is None:
            raise StepFailed(f"GGUF has no name for the layer `{name}`")
        return str(known)

    return rename

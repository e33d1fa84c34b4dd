"""mlx-lm's quantization, read back and compared with what was asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx_lm import utils

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.mlx import codes
from phipipe.backends.mlx.convert import opened, save, stored
from phipipe.backends.widths import FLOAT_BITS
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Json, Params

Choice = Callable[[str, nn.Module | None], bool | dict[str, Json]]
"""A layer's path → its options; True: as all others; False: floats."""
Asked = tuple[int, int] | None
"""Bits and group size; None: floats."""


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, quantized as ``params`` say, and read
    back.

    With ``inputs["source"]``, a checkpoint, in its place it is opened as ``convert`` would (dtype,
    config_patch). ``inputs["weights"]`` are learned codes (``algorithms.lattice``), which are
    stored as they are.

    Raises:
        StepFailed: mlx-lm stored something else than asked.
    """
    learned = Lattice(inputs["weights"]) if "weights" in inputs else None
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as scratch:
        if "source" in inputs:
            model, config, folder = opened(inputs["source"], params, Path(scratch) / "model")
        else:
            folder = inputs["model"]
            model, config = utils.load_model(folder, lazy=True)
        inner = {
            name: module.weight.shape[-1]
            for name, module in model.named_modules()
            if hasattr(module, "to_quantized")
        }
        choice = _choice(params)
        model, config = utils.quantize_model(
            model,
            config,
            params["group_size"],
            params["bits"],
            mode=params["mode"],
            quant_predicate=choice,
        )
        if learned:
            codes.put(model, learned)
        save(model, config, folder, out)
    tensors = stored(out)
    check(tensors, inner, {name: _asked(name, choice, params) for name in inner})
    check_named(inner, params.get("widths", {}))
    if learned:
        codes.check(tensors, learned)


def _choice(params: Params) -> Choice | None:
    """Widths of single layers. None is the same for all."""
    widths = params.get("widths")
    if not widths:
        return None

    def choice(path: str, module: nn.Module | None) -> bool | dict[str, Json]:
        width = widths.get(codes.matrix_of(path))
        if width is None:
            return True
        bits, size = width
        return bits != FLOAT_BITS and {"group_size": size, "bits": bits, "mode": "affine"}

    return choice


def _asked(path: str, choice: Choice | None, params: Params) -> Asked:
    """What the layer is to be stored in."""
    own = choice(path, None) if choice else True
    if own is False:
        return None
    options = own if isinstance(own, dict) else params
    return options["bits"], options["group_size"]


def check_named(paths: Iterable[str], widths: Mapping[str, Json]) -> None:
    """The model has a layer for each matrix in ``widths``.

    Raises:
        StepFailed: names the first that it lacks.
    """
    if lost := widths.keys() - {codes.matrix_of(path) for path in paths}:
        raise StepFailed(f"mlx-lm's model has no layer that holds `{min(lost)}` alone")


def check(
    tensors: Mapping[str, mx.array], inner: Mapping[str, int], asked: Mapping[str, Asked]
) -> None:
    """Bits and group size of every layer, from the shapes of what was written: 32-bit words and
    scales.

    ``inner`` has the layers' widths.

    Raises:
        StepFailed: names the first layer that is stored otherwise.
    """
    for name, width in inner.items():
        if f"{name}.scales" not in tensors:
            if asked[name] is None:
                continue
            raise StepFailed(f"mlx-lm left `{name}` unquantized")
        bits = tensors[f"{name}.weight"].shape[-1] * 32 // width
        group = width // tensors[f"{name}.scales"].shape[-1]
        if (bits, group) != asked[name]:
            raise StepFailed(
                f"`{name}` was asked for in {_words(asked[name])}, and mlx-lm stored "
                f"{_words((bits, group))}"
            )


def _words(asked: Asked) -> str:
    return f"{asked[0]} bits and groups of {asked[1]}" if asked else "floats"

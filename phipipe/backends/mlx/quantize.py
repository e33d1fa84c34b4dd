"""mlx-lm's quantization, read back and compared with what was asked."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx_lm import utils

from phipipe.backends.mlx.convert import opened, save, stored
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Json, Params

Widths = Callable[[str, nn.Module | None], dict[str, Json]]  # a layer's name → its options


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, quantized as ``params`` say, and read
    back.

    With ``inputs["source"]``, a checkpoint, in its place it is opened as ``convert`` would (dtype,
    config_patch).

    Raises:
        StepFailed: mlx-lm stored something else than asked.
    """
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
        widths, bits = _widths(model, params), params["bits"]
        asked = {name: widths(name, None)["bits"] if widths else bits for name in inner}
        model, config = utils.quantize_model(
            model,
            config,
            params["group_size"],
            bits,
            mode=params["mode"],
            quant_predicate=widths,
        )
        save(model, config, folder, out)
    check(stored(out), inner, asked, params["group_size"])


def _widths(model: nn.Module, params: Params) -> Widths | None:
    """mlx-lm's choice of widths for ``params["mixed"]``; None is the same for all."""
    if params["mixed"] == "none":
        return None
    # By its name, since `mlx_lm.convert` itself is a function by now.
    converter = importlib.import_module("mlx_lm.convert")
    widths: Widths = converter.mixed_quant_predicate_builder(
        params["mixed"], model, params["group_size"]
    )
    return widths


def check(
    tensors: Mapping[str, mx.array],
    inner: Mapping[str, int],
    asked: Mapping[str, int],
    group_size: int,
) -> None:
    """Bits and group size of every layer, from the shapes of what was written: 32-bit words and
    scales.

    ``inner`` has the layers' widths, ``asked`` their bits.

    Raises:
        StepFailed: names the first layer that is stored otherwise.
    """
    for name, width in inner.items():
        if f"{name}.scales" not in tensors:
            raise StepFailed(f"mlx-lm left `{name}` unquantized")
        bits = tensors[f"{name}.weight"].shape[-1] * 32 // width
        group = width // tensors[f"{name}.scales"].shape[-1]
        if (bits, group) != (asked[name], group_size):
            raise StepFailed(
                f"`{name}` was asked for in {asked[name]} bits and groups of {group_size}, and "
                f"mlx-lm stored {bits} bits and groups of {group}"
            )

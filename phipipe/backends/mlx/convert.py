"""A checkpoint as an MLX folder in floating point; tensors are read when they are written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map_with_path
from mlx_lm import utils

from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside, staged
from phipipe.steps import Inputs, Json, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an MLX folder in ``params["dtype"]``.

    Raises:
        StepFailed: a tensor has another dtype than asked.
    """
    dtype = getattr(mx, params["dtype"])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        model, config, source = opened(inputs["source"], params, Path(scratch) / "model")
        save(model, config, source, out)
    keep, tensors = _castable(model), stored(out)
    matrices = [name for name in tensors if name.endswith(".weight") and keep(name)]
    wrong = [name for name in matrices if tensors[name].dtype != dtype]
    if wrong or any(name.endswith(".scales") for name in tensors):
        raise StepFailed(
            f"the conversion is not {params['dtype']}: {', '.join(wrong[:1]) or 'it is quantized'}"
        )


def opened(checkpoint: Path, params: Params, scratch: Path) -> tuple[nn.Module, Json, Path]:
    """mlx-lm's model of ``checkpoint`` in ``params["dtype"]``, nothing read yet; its config; the
    folder ``scratch``, where the checkpoint lies patched."""
    dtype, source = (
        getattr(mx, params["dtype"]),
        staged(checkpoint, params["config_patch"], scratch),
    )
    model, config = utils.load_model(source, lazy=True)
    keep = _castable(model)

    def cast(name: str, value: mx.array) -> mx.array:
        is_float = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(dtype) if keep(name) and is_float else value

    model.update(tree_map_with_path(cast, model.parameters()))
    config["torch_dtype"] = params["dtype"]
    config.pop("auto_map", None)
    return model, config, source


def _castable(model: nn.Module) -> Callable[[str], bool]:
    """Whether a tensor takes the model's width: some models want a few in fp32."""
    keep: Callable[[str], bool] = getattr(model, "cast_predicate", lambda name: True)
    return keep


def save(model: nn.Module, config: Json, source: Path, out: Path) -> None:
    """mlx-lm's own files, but the tokenizer's as they are in ``source``: saving them again would
    change them."""
    utils.save_model(out, model, donate_model=True)
    utils.save_config(config, out / "config.json")
    copy_beside(source, out, leave=lambda name: "safetensors" in name or (out / name).exists())


def stored(folder: Path) -> dict[str, mx.array]:
    """Every tensor in the folder by name, not yet read."""
    tensors: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(path))
    return tensors

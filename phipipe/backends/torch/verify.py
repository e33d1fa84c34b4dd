"""Whether auto-round packed a checkpoint as it was asked to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from phipipe.errors import StepFailed
from phipipe.models.tensors import LINEAR, read, tensors, where_are
from phipipe.models.weight_files import shards
from phipipe.steps import Params


def verify(source: Path, folder: Path, params: Params) -> None:
    """Every linear of the decoder layers is packed as asked, every other tensor is the source's
    own.

    Raises:
        StepFailed: names the first tensor that is not as it should be.
    """
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    wanted = {
        "bits": params["bits"],
        "group_size": params["group_size"],
        "sym": params["symmetric"],
    }
    wanted |= {"quant_method": "auto-round", "data_type": "int"}
    wrong = [key for key, value in wanted.items() if settings.get(key) != value]
    if wrong:
        raise StepFailed(
            f"auto-round wrote `{wrong[0]}: {settings.get(wrong[0])}`, not {wanted[wrong[0]]}"
        )
    extra = [key for key in ("extra_config", "regex_config") if settings.get(key)]
    if extra:
        raise StepFailed(
            f"auto-round made exceptions that were not asked for: {settings[extra[0]]}"
        )
    present = where_are(shards(folder))
    packed = 0
    for name, tensor in (pair for path in shards(source) for pair in tensors(path)):
        if LINEAR.fullmatch(name) and tensor.dim() == 2:
            _check_packed(name.removesuffix(".weight"), tensor.shape, present, params)
            packed += 1
        elif name not in present or not read(present.pop(name), name).equal(tensor):
            raise StepFailed(f"`{name}` is not the source's own")
    if not packed or present:
        raise StepFailed(
            f"unexpected tensor `{min(present)}`" if present else "no linear was quantized"
        )


def _check_packed(
    linear: str, shape: Sequence[int], present: dict[str, Path], params: Params
) -> None:
    """Take the parts of ``linear``, whose weight is ``shape`` in the source, out of ``present`` and
    check them."""
    for part, wanted in _parts(shape, params).items():
        name = f"{linear}.{part}"
        if name not in present:
            raise StepFailed(f"auto-round left `{linear}` unquantized: there is no `{part}`")
        tensor = read(present.pop(name), name)
        if (tensor.dtype, tuple(tensor.shape)) != wanted:
            raise StepFailed(f"`{name}` is {tensor.dtype} {tuple(tensor.shape)}, not {wanted}")
        _check_values(part, name, tensor, params)


def _parts(shape: Sequence[int], params: Params) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of the parts that a weight of ``shape`` is packed into."""
    rows, width, bits = shape[0], shape[1], params["bits"]
    size = width if params["group_size"] == -1 else params["group_size"]
    parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "qweight": (torch.int32, (width * bits // 32, rows)),
        "qzeros": (torch.int32, (width // size, rows * bits // 32)),
        "scales": (torch.float16, (width // size, rows)),
    }
    return parts if params["symmetric"] else {**parts, "g_idx": (torch.int32, (width,))}


def _check_values(part: str, name: str, tensor: torch.Tensor, params: Params) -> None:
    if part == "scales" and not tensor.isfinite().all():
        raise StepFailed(f"`{name}` has values that are not finite numbers")
    if part == "qzeros" and params["symmetric"] and len(tensor.unique()) != 1:
        raise StepFailed(f"`{name}` has zero points of its own: the rounding is not symmetric")
    if part == "g_idx":
        size = len(tensor) if params["group_size"] == -1 else params["group_size"]
        if not tensor.equal(torch.arange(len(tensor), dtype=torch.int32) // size):
            raise StepFailed(f"`{name}` does not number the groups in order")

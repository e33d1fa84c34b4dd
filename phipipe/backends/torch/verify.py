"""Whether a checkpoint is packed as it was asked to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.backends.torch import exact, packing
from phipipe.backends.torch.packing import Packing
from phipipe.backends.widths import FLOAT_BITS
from phipipe.errors import StepFailed
from phipipe.models.tensors import LINEAR, read, tensors, where_are
from phipipe.models.weight_files import shards
from phipipe.steps import Json, Params


def verify(source: Path, folder: Path, params: Params, weights: Path | None = None) -> None:
    """Every matrix is packed as asked, or is the source's own like every other tensor; with
    ``weights``, a folder of ``algorithms.lattice``, its value is exactly what that holds.

    Raises:
        StepFailed: names the first tensor that is not as it should be.
    """
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    _check_settings(settings, packing.shapes(source), params)
    stored = Lattice(weights) if weights else None
    present = where_are(shards(folder))
    packed = 0
    for name, tensor in (pair for path in shards(source) for pair in tensors(path)):
        how = packing.of(name, tensor.shape, params)
        matrix = exact.learned(stored, name, params) if stored else None
        if how:
            parts = _take(name.removesuffix(".weight"), tensor.shape, present, params, how)
            if matrix:
                _check_learned(name, _dense(parts, how), matrix)
            packed += 1
        elif name not in present:
            raise StepFailed(f"`{name}` is not there")
        elif matrix:
            _check_learned(name, read(present.pop(name), name), matrix)
        elif not read(present.pop(name), name).equal(tensor):
            raise StepFailed(f"`{name}` is not the source's own")
    if not packed or present:
        raise StepFailed(
            f"unexpected tensor `{min(present)}`" if present else "no linear was quantized"
        )


def _check_settings(
    settings: Mapping[str, Json], shapes: Mapping[str, Sequence[int]], params: Params
) -> None:
    """What a reader of the config takes each matrix for is what was asked for."""
    usual = {
        "bits": params["bits"],
        "group_size": params["group_size"],
        "sym": params["symmetric"],
    }
    usual |= {"data_type": "int"}
    wanted = usual | {"quant_method": "auto-round"}
    wrong = [key for key, value in wanted.items() if settings.get(key) != value]
    if wrong:
        raise StepFailed(
            f"auto-round wrote `{wrong[0]}: {settings.get(wrong[0])}`, not {wanted[wrong[0]]}"
        )
    extra = settings.get("extra_config") or {}
    asked = packing.exceptions(shapes, params)
    other = sorted(extra.keys() - asked.keys())
    if other or settings.get("regex_config"):
        raise StepFailed(
            "auto-round made exceptions that were not asked for: "
            f"{other or settings['regex_config']}"
        )
    for name in (name for name, shape in shapes.items() if len(shape) == 2):
        module, how = name.removesuffix(".weight"), packing.of(name, shapes[name], params)
        read_as = {**(usual if LINEAR.fullmatch(name) else {}), **extra.get(module, {})}
        as_asked = read_as.get("bits", FLOAT_BITS) == (how.bits if how else FLOAT_BITS)
        if how:
            as_asked &= all(read_as.get(key) == usual[key] for key in ("sym", "data_type"))
            as_asked &= read_as.get("group_size") == how.group_size
        if not as_asked:
            raise StepFailed(f"auto-round's config has `{module}` as {read_as}, not {how}")


def _take(
    linear: str, shape: Sequence[int], present: dict[str, Path], params: Params, how: Packing
) -> dict[str, torch.Tensor]:
    """The parts of ``linear``, whose weight is ``shape`` in the source, taken out of ``present``
    and checked."""
    found: dict[str, torch.Tensor] = {}
    for part, wanted in _parts(shape, params, how).items():
        name = f"{linear}.{part}"
        if name not in present:
            raise StepFailed(f"auto-round left `{linear}` unquantized: there is no `{part}`")
        tensor = found[part] = read(present.pop(name), name)
        if (tensor.dtype, tuple(tensor.shape)) != wanted:
            raise StepFailed(f"`{name}` is {tensor.dtype} {tuple(tensor.shape)}, not {wanted}")
        _check_values(part, name, tensor, params, how)
    return found


def _parts(
    shape: Sequence[int], params: Params, how: Packing
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of the parts that a weight of ``shape`` is packed into."""
    rows, width, bits = shape[0], shape[1], how.bits
    groups = width // how.size(width)
    parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "qweight": (torch.int32, (width * bits // 32, rows)),
        "qzeros": (torch.int32, (groups, rows * bits // 32)),
        "scales": (torch.float16, (groups, rows)),
    }
    return parts if params["symmetric"] else {**parts, "g_idx": (torch.int32, (width,))}


def _check_values(part: str, name: str, tensor: torch.Tensor, params: Params, how: Packing) -> None:
    if part == "scales" and not tensor.isfinite().all():
        raise StepFailed(f"`{name}` has values that are not finite numbers")
    if part == "qzeros" and params["symmetric"] and len(tensor.unique()) != 1:
        raise StepFailed(f"`{name}` has zero points of its own: the rounding is not symmetric")
    if part == "g_idx":
        wanted = torch.arange(len(tensor), dtype=torch.int32) // how.size(len(tensor))
        if not tensor.equal(wanted):
            raise StepFailed(f"`{name}` does not number the groups in order")


def _dense(parts: Mapping[str, torch.Tensor], how: Packing) -> torch.Tensor:
    """The weight float32 [rows, columns] of GPTQ's layout."""
    return packing.dense(parts, how.bits, True, parts["scales"].float()).T


def _check_learned(name: str, tensor: torch.Tensor, matrix: Matrix) -> None:
    if not tensor.float().equal(torch.from_numpy(matrix.dense())):
        raise StepFailed(f"`{name}` does not hold the learned weights as they are")

"""Checkpoints of safetensors: read one tensor at a time, rewritten file by file, and what
auto-round packed checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Json, Params

LINEAR = re.compile(
    r"model\.layers\.\d+\..+\.weight"
)  # of these, the two-dimensional ones; norms have one dimension
PARTS = ("qweight", "qzeros", "scales", "g_idx")  # the last with zero points only
INDEX = "model.safetensors.index.json"
Change = Callable[[str, Any], dict[str, Any]]  # a tensor's name and value → what takes its place


def rewrite(source: Path, out: Path, change: Change, settings: Mapping[str, Json]) -> None:
    """Copy the checkpoint file by file, each tensor replaced by what ``change`` makes of it.

    Shards are read and written one at a time; the layout of the source's config and tokenizer is
    kept, since other tools misread what transformers 5 writes. ``settings`` replace top-level keys
    of the config.
    """
    from safetensors.torch import save_file

    from phipipe.models import checkpoints

    where: dict[str, str] = {}
    total = 0
    for path in shards(source):
        made = {
            key: value
            for name, tensor in tensors(path)
            for key, value in change(name, tensor).items()
        }
        save_file(made, out / path.name, metadata={"format": "pt"})
        where |= dict.fromkeys(made, path.name)
        total += sum(tensor.nbytes for tensor in made.values())
    copy_beside(source, out, checkpoints.loose_files(source))
    if (source / INDEX).is_file():
        _write(
            out / INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))},
        )
    config = json.loads((source / "config.json").read_text("utf-8")) | dict(settings)
    config.pop("auto_map", None)
    _write(out / "config.json", config)


def shards(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint: those its index names, if it has one."""
    index = folder / INDEX
    if index.is_file():
        return [
            folder / name
            for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        ]
    return sorted(folder.glob("*.safetensors"))


def where_are(paths: Sequence[Path]) -> dict[str, Path]:
    """Tensor name → the file that holds it."""
    return {name: path for path in paths for name, _ in tensors(path)}


def tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and value of every tensor of a file, one in memory at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (not a mapping)
            yield name, shard.get_tensor(name)


def read(path: Path, name: str) -> Any:
    """The tensor ``name`` of the file ``path``."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as shard:
        return shard.get_tensor(name)


def dtypes(folder: Path) -> set[str]:
    """safetensors' names of the dtypes that the checkpoint's tensors are stored in."""
    from safetensors import safe_open

    found = set()
    for path in shards(folder):
        with safe_open(path, framework="pt") as shard:
            found |= {shard.get_slice(name).get_dtype() for name in shard.keys()}  # noqa: SIM118 (not a mapping)
    return found


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


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
    if wrong := [key for key, value in wanted.items() if settings.get(key) != value]:
        raise StepFailed(
            f"auto-round wrote `{wrong[0]}: {settings.get(wrong[0])}`, not {wanted[wrong[0]]}"
        )
    if extra := [key for key in ("extra_config", "regex_config") if settings.get(key)]:
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
    import torch

    rows, width, bits = shape[0], shape[1], params["bits"]
    size = width if params["group_size"] == -1 else params["group_size"]
    expected = {
        "qweight": (torch.int32, (width * bits // 32, rows)),
        "qzeros": (torch.int32, (width // size, rows * bits // 32)),
        "scales": (torch.float16, (width // size, rows)),
    } | ({} if params["symmetric"] else {"g_idx": (torch.int32, (width,))})
    for part, wanted in expected.items():
        name = f"{linear}.{part}"
        if name not in present:
            raise StepFailed(f"auto-round left `{linear}` unquantized: there is no `{part}`")
        tensor = read(present.pop(name), name)
        if (tensor.dtype, tuple(tensor.shape)) != wanted:
            raise StepFailed(f"`{name}` is {tensor.dtype} {tuple(tensor.shape)}, not {wanted}")
        if part == "scales" and not tensor.isfinite().all():
            raise StepFailed(f"`{name}` has values that are not finite numbers")
        if part == "qzeros" and params["symmetric"] and len(tensor.unique()) != 1:
            raise StepFailed(f"`{name}` has zero points of its own: the rounding is not symmetric")
        if part == "g_idx" and not tensor.equal(torch.arange(width, dtype=torch.int32) // size):
            raise StepFailed(f"`{name}` does not number the groups in order")

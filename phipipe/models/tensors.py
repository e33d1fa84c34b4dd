"""Checkpoints of safetensors: read one tensor at a time, rewritten file by file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from phipipe import progress
from phipipe.models import checkpoints
from phipipe.models.staging import copy_beside
from phipipe.models.weight_files import INDEX, shards
from phipipe.steps import Json

# Of these, the two-dimensional ones; norms have one dimension.
LINEAR = re.compile(r"model\.layers\.\d+\..+\.weight")
PARTS = ("qweight", "qzeros", "scales", "g_idx")  # the last with zero points only
Change = Callable[
    [str, torch.Tensor], dict[str, torch.Tensor]
]  # a tensor's name and value → what takes its place


def rewrite(source: Path, out: Path, change: Change, settings: Mapping[str, Json]) -> None:
    """Copy the checkpoint file by file, each tensor replaced by what ``change`` makes of it.

    Shards are read and written one at a time; the layout of the source's config and tokenizer is
    kept, since other tools misread what transformers 5 writes. ``settings`` replace top-level keys
    of the config.
    """
    where: dict[str, str] = {}
    total = 0
    for path in progress.each(list(shards(source)), "files"):
        changed: dict[str, torch.Tensor] = {}
        for name, tensor in tensors(path):
            changed |= change(name, tensor)
        save_file(changed, out / path.name, metadata={"format": "pt"})
        where |= dict.fromkeys(changed, path.name)
        total += sum(tensor.nbytes for tensor in changed.values())
    copy_beside(source, out, checkpoints.loose_files(source))
    if (source / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        _write(out / INDEX, index)
    config = json.loads((source / "config.json").read_text("utf-8")) | dict(settings)
    config.pop("auto_map", None)
    _write(out / "config.json", config)


def where_are(paths: Sequence[Path]) -> dict[str, Path]:
    """Tensor name → the file that holds it."""
    return {name: path for path in paths for name, _ in tensors(path)}


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of a file, one in memory at a time."""
    with safe_open(path, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (not a mapping)
            yield name, shard.get_tensor(name)


def read(path: Path, name: str) -> torch.Tensor:
    """The tensor ``name`` of the file ``path``."""
    with safe_open(path, framework="pt") as shard:
        return shard.get_tensor(name)


def dtypes(folder: Path) -> set[str]:
    """safetensors' names of the dtypes that the checkpoint's tensors are stored in."""
    dtypes: set[str] = set()
    for path in shards(folder):
        with safe_open(path, framework="pt") as shard:
            names = list(shard.keys())
            dtypes |= {shard.get_slice(name).get_dtype() for name in names}
    return dtypes


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")

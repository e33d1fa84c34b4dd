"""Checkpoints of safetensors: read one tensor at a time, rewritten file by file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe.models.staging import copy_beside
from phipipe.steps import Json

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

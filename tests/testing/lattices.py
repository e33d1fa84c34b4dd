"""Learned weights by hand: random codes and scales in the place of a checkpoint's matrices, which
no rounding would find again. For toolchains with torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.models import linears
from phipipe.models.weight_files import INDEX

Widths = dict[str, dict[str, Any]]


def make(
    source: Path, folder: Path, group_size: int = 32, special: Mapping[str, int] | None = None
) -> Widths:
    """A lattice for the checkpoint ``source`` in ``folder / "weights"``, and the checkpoint that it
    stands for in ``folder / "dense"``, in fp32.

    4 bits in the layers, 8 outside, but for matrices in ``special``; those with 16 bits there stay
    as they are. Returns the parameter ``widths`` of a step that stores it.
    """
    tensors = _tensors(source)
    random = np.random.default_rng(5)
    weights = folder / "weights"
    weights.mkdir(parents=True)
    widths: Widths = {}
    for part, (key, tensor) in enumerate(sorted(tensors.items())):
        name = linears.linear_of(key)
        if name is None:
            continue
        usual = 4 if linears.layer_of(name) is not None else 8
        bits = (special or {}).get(name, usual)
        widths[name] = {"bits": bits, "group_size": group_size if bits != 16 else None}
        if bits == 16:
            continue
        size = tensor.shape[1] if group_size == -1 else group_size
        matrix = _random(random, tuple(tensor.shape), bits, size, float(tensor.std()))
        lattice.write(weights, part, {name: matrix})
        tensors[key] = torch.from_numpy(matrix.dense())
    lattice.finish(weights, {"learn": "by hand"})
    _write(source, folder / "dense", tensors)
    if "lm_head" not in widths:
        widths["lm_head"] = widths["embed_tokens"]
    return widths


def _random(
    random: np.random.Generator, shape: tuple[int, ...], bits: int, size: int, deviation: float
) -> Matrix:
    """Uniform codes, scales of both signs; the weights have about the ``deviation``."""
    low, high = lattice.limits(bits)
    codes = random.integers(low, high + 1, shape, np.int8)
    wide = deviation * math.sqrt(12) / (high - low + 1)
    sizes = random.uniform(0.5, 1.5, (shape[0], shape[1] // size)).astype(np.float32)
    signs = random.choice(np.array([-1, 1], np.float32), sizes.shape)
    return Matrix(bits=bits, codes=codes, scales=lattice.to_scales(wide * sizes * signs))


def _tensors(source: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        found |= load_file(path)
    return {name: tensor.float() for name, tensor in found.items()}


def _write(source: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    ignored = shutil.ignore_patterns("*.safetensors", INDEX)
    shutil.copytree(source, folder, ignore=ignored)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def changed(folder: Path, out: Path) -> Path:
    """A copy of the lattice in which one code of one matrix is another."""
    stored = Lattice(folder)
    out.mkdir()
    for part, name in enumerate(sorted(stored.names)):
        matrix = stored[name]
        if part == 1:
            codes = matrix.codes.copy()
            codes[-1, -1] ^= 1
            matrix = Matrix(bits=matrix.bits, codes=codes, scales=matrix.scales)
        lattice.write(out, part, {name: matrix})
    lattice.finish(out, {"learn": "by hand"})
    return out

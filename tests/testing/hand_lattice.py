"""Weights on the lattice, made by hand: ``python -m testing.hand_lattice SOURCE LATTICE DENSE SIZE
MATRIX...`` leaves codes and scales of the checkpoint SOURCE in groups of SIZE, all but the named
matrices, and the checkpoint DENSE of the values that they stand for, in fp32.

Every code is moved at random after rounding, so that a runtime that rounds again stores others.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Matrix
from phipipe.models import linears


def make(
    source: Path,
    folder: Path,
    dense: Path,
    size: int,
    floats: Collection[str] = (),
    *,
    positive: bool = False,
) -> dict[str, tuple[int, int]]:
    """Bits and group size of each matrix: 4 bits in the layers, 8 outside of them; ``positive``:
    no scale is below 0, and 8 bits share one in a row (-1), as all do with a ``size`` of -1."""
    folder.mkdir(parents=True)
    shutil.copytree(source, dense, ignore=shutil.ignore_patterns("*.safetensors"))
    random, widths = np.random.default_rng(0), {}
    tensors = load_file(source / "model.safetensors")
    for key, weight in tensors.items():
        name = linears.linear_of(key)
        tensors[key] = weight.float()
        if name and name not in floats:
            bits = 4 if linears.layer_of(name) is not None else 8
            by_row = (positive and bits == 8) or size == -1
            group = weight.shape[1] if by_row else size
            matrix = moved(weight.float().numpy(), bits, group, random, positive=positive)
            lattice.write(folder, len(widths), {name: matrix})
            tensors[key] = torch.from_numpy(matrix.dense())
            widths[name] = (bits, -1 if by_row else size)
    lattice.finish(folder, {"learn": "round"})
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((dense / "config.json").read_text("utf-8"))
    (dense / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}), "utf-8")
    return widths


def moved(
    weight: lattice.Floats,
    bits: int,
    size: int,
    random: np.random.Generator,
    *,
    positive: bool = False,
) -> Matrix:
    """``weight`` rounded with scales of both signs, unless ``positive``, and each code one up, one
    down or where it was; the first is the lowest that there is."""
    low, high = lattice.limits(bits)
    groups = weight.reshape(len(weight), -1, size)
    signs = random.choice([1] if positive else [-1, 1], groups.shape[:2])
    scales = lattice.to_scales((np.abs(groups).max(-1) / high * signs).astype(np.float32))
    codes = np.rint(groups / scales.astype(np.float32)[..., None])
    codes = np.clip(codes + random.integers(-1, 2, codes.shape), low, high).astype(np.int8)
    codes.reshape(-1)[0] = low
    return Matrix(bits=bits, codes=codes.reshape(weight.shape), scales=scales)


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:4]), int(sys.argv[4]), sys.argv[5:])

"""Codes that auto-round learns, on the lattice: its own as they are, its scales as the lattice has
them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from phipipe.algorithms import autoround, lattice, rounding
from phipipe.algorithms.lattice import Matrix
from phipipe.algorithms.rounding import Grid
from phipipe.errors import StepFailed
from phipipe.models import linears, tensor_places
from phipipe.steps import Json

BITS = 4
Grids = Mapping[str, Grid]


def learnable(grids: Grids) -> dict[str, Grid]:
    """What of ``grids`` (matrix → grid) is learned so: the matrices of the layers at 4 bits."""
    return {
        name: grid
        for name, grid in grids.items()
        if linears.layer_of(name) is not None and grid.bits == BITS
    }


def learn(source: Path, text: Path, grids: Grids, iterations: int, folder: Path) -> None:
    """Leave in ``folder`` the ``learnable`` matrices of the checkpoint ``source``, all or none,
    learned from the tokens in ``text``, ``evaluate/calibration``'s folder, in so many
    ``iterations`` a layer.

    The whole model is in memory, in fp32.

    Raises:
        StepFailed: auto-round left one of them as it was.
    """
    wanted = learnable(grids)
    usual = next(iter(wanted.values()))
    params: dict[str, Json] = {
        "algorithm": "signround",
        "bits": BITS,
        "group_size": usual.group_size,
        "symmetric": True,
        "iterations": iterations,
    }
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        read = autoround.readable(source, Path(scratch) / "source")
        exceptions = _exceptions(source, wanted, usual)
        model, _ = autoround.rounder(read, params, exceptions, text).quantize()
    modules = ((linears.linear_of(f"{name}.weight"), one) for name, one in model.named_modules())
    found = {name: _matrix(name, one, wanted[name]) for name, one in modules if name in wanted}
    if lost := wanted.keys() - found.keys():
        raise StepFailed(f"auto-round has no `{min(lost)}`")
    lattice.write(folder, 0, found)


def _exceptions(source: Path, wanted: Grids, usual: Grid) -> dict[str, dict[str, Json]]:
    """Module → auto-round's settings, where they are not those of all others."""
    found: dict[str, dict[str, Json]] = {}
    for tensor in tensor_places.places(source):
        name = linears.linear_of(tensor)
        if name is None or linears.layer_of(name) is None:
            continue
        grid, module = wanted.get(name), tensor.removesuffix(".weight")
        if grid is None:
            found[module] = {"bits": 16}
        elif grid != usual:
            found[module] = {"bits": grid.bits, "group_size": grid.group_size}
    return found


def _matrix(name: str, module: torch.nn.Module, grid: Grid) -> Matrix:
    """The codes of a linear whose weight auto-round has made code × scale."""
    scales = getattr(module, "scale", None)
    if scales is None:
        raise StepFailed(f"auto-round left `{name}` as it was")
    weight = module.weight.detach().cpu()
    scales = scales.float().cpu().view(len(weight), -1)
    return rounding.matrix(rounding.nearest(weight, scales, grid), scales, grid)

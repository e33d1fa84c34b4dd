"""Rounding of a matrix onto the lattice: to the nearest, and by a search for scales.

All functions work on float32 tensors of torch, a matrix [rows, columns] with inputs along the
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Matrix

# Shares of the scale at which the largest weight of a group just fits, tried one by one. Below 1
# the largest weight is cut, and all others are finer. (What a finer grid adds is below 1 % of the
# error on a trained model.)
_SHARES = (0.64, 0.7, 0.76, 0.82, 0.87, 0.92, 0.96, 1.0, 1.06)
# The largest of a whole row stands out further.
_ROW_SHARES = (0.25, 0.3, 0.36, 0.42, 0.47, 0.53, 0.58, *_SHARES)
_LONGEST_GROUP = 256
_REFINEMENTS = 3
_WEIGHTS = 2**19  # whose scales are searched at a time: a cache holds them
_DROPPED = 24 - lattice.SIGNIFICANT_BITS  # of float32's significant bits


@dataclass(frozen=True, kw_only=True)
class Grid:
    """``bits`` of a code, weights in a group; ``positive``: no scale is below 0."""

    bits: int
    group_size: int
    positive: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        return lattice.limits(self.bits)


def on_lattice(scales: torch.Tensor) -> torch.Tensor:
    """The nearest scales of the lattice, float32: those of ``lattice.to_scales``, faster."""
    bits = scales.view(torch.int32)
    # to the nearest, a tie to the even one
    bits = bits + ((1 << (_DROPPED - 1)) - 1) + ((bits >> _DROPPED) & 1)
    kept = (bits & -(1 << _DROPPED)).view(torch.float32)
    return kept.abs().clamp_(lattice.SMALLEST, lattice.LARGEST).copysign_(scales)


def nearest(weight: torch.Tensor, scales: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes [rows, columns], int8, of the nearest values; ``scales`` [rows, groups]."""
    low, high = grid.limits
    wide = scales.repeat_interleave(grid.group_size, 1)
    return (weight / wide).round_().clamp_(low, high).to(torch.int8)


def plain_scales(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Scales [rows, groups] at which the weight of the largest size in each group is the lowest
    code, whose sign it thereby decides: all codes are used. As llama.cpp's Q4_0 and onnxruntime's
    symmetric blocks. Of a ``positive`` grid, the least at which every weight has a code."""
    groups = weight.view(len(weight), -1, grid.group_size)
    if grid.positive:
        low, high = grid.limits
        return on_lattice(torch.maximum(groups.amax(-1) / high, groups.amin(-1) / low).abs())
    at = groups.abs().argmax(-1, keepdim=True)
    return on_lattice(groups.gather(-1, at).squeeze(-1) / grid.limits[0])


def searched_scales(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Scales [rows, groups] with the least error Σ importance · (weight − code · scale)²;
    ``importance`` [columns] is the mean square of each input."""
    step = max(1, _WEIGHTS // weight.shape[1])
    parts = [
        _searched(weight[start : start + step], importance, grid)
        for start in range(0, len(weight), step)
    ]
    return torch.cat(parts)


def _searched(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> torch.Tensor:
    groups = weight.view(len(weight), -1, grid.group_size)
    # A group that no text drives is rounded as if all its inputs were driven alike.
    drive = importance.view(1, -1, grid.group_size)
    drive = drive + drive.mean(-1, keepdim=True) * 1e-3 + 1e-12
    low, high = grid.limits

    def error(scales: torch.Tensor) -> torch.Tensor:
        codes = (groups / scales[..., None]).round_().clamp_(low, high)
        return (codes.mul_(scales[..., None]).sub_(groups).square_().mul_(drive)).sum(-1)

    plain = plain_scales(weight, grid)
    best, least = plain, error(plain)
    shares = _SHARES if grid.group_size <= _LONGEST_GROUP else _ROW_SHARES
    for share in shares if grid.bits == 4 else ():
        for sign in (1,) if grid.positive else (1, -1):
            scales = on_lattice(plain * (share * sign))
            best, least = _better(best, least, scales, error(scales))
    for _ in range(_REFINEMENTS):
        codes = (groups / best[..., None]).round_().clamp_(low, high)
        fitted = (drive * groups * codes).sum(-1) / (drive * codes * codes).sum(-1).clamp_min(1e-30)
        kept = fitted <= 0 if grid.positive else fitted == 0
        scales = on_lattice(torch.where(kept, best, fitted))
        best, least = _better(best, least, scales, error(scales))
    return best


def _better(
    best: torch.Tensor, least: torch.Tensor, scales: torch.Tensor, error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    closer = error < least
    return torch.where(closer, scales, best), torch.where(closer, error, least)


def matrix(codes: torch.Tensor, scales: torch.Tensor, grid: Grid) -> Matrix:
    """The rounded matrix as the lattice stores it."""
    stored = lattice.to_scales(scales.cpu().numpy())
    return Matrix(bits=grid.bits, codes=codes.cpu().numpy(), scales=stored)


def plain(weight: torch.Tensor, grid: Grid) -> Matrix:
    """The weight to the nearest codes at ``plain_scales``."""
    scales = plain_scales(weight, grid)
    return matrix(nearest(weight, scales, grid), scales, grid)


def searched(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> Matrix:
    """The weight to the nearest codes at ``searched_scales``."""
    scales = searched_scales(weight, importance, grid)
    return matrix(nearest(weight, scales, grid), scales, grid)

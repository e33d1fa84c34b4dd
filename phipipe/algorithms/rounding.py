"""Rounding of a matrix onto the lattice: to the nearest, by a search for scales, and by GPTQ.

All functions work on float32 tensors of torch, a matrix [rows, columns] with inputs along the
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Matrix

# Shares of the scale at which the largest weight of a group just fits, tried one by one. Below 1
# the largest weight is cut, and all others are finer. (What a finer grid adds is below 1 % of the
# error on a trained model.)
_SHARES = (0.64, 0.7, 0.76, 0.82, 0.87, 0.92, 0.96, 1.0, 1.06)
_REFINEMENTS = 3
_BLOCK = 128  # columns whose errors are carried on together
_ROWS = 2**24  # weights that are rounded at a time


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
    """The nearest scales of the lattice, float32."""
    return torch.from_numpy(lattice.to_scales(scales.numpy()).astype(np.float32))


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
    step = max(1, _ROWS // weight.shape[1])
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
    for share in _SHARES if grid.bits == 4 else ():
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


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """How the error of one column is carried on to those behind it: their ``order``, and the upper
    Cholesky ``factor`` [columns, columns] of the inverse of their products, in that order."""

    order: torch.Tensor
    factor: torch.Tensor


def carrier(products: torch.Tensor, damping: float) -> Carrier:
    """For inputs x whose sum of x·xᵀ is ``products`` [columns, columns]. Columns go by how strongly
    they are driven, the strongest first."""
    order = products.diagonal().argsort(descending=True, stable=True)
    return Carrier(order=order, factor=_factor(products[order][:, order], damping))


def gptq(weight: torch.Tensor, carried: Carrier, scales: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Codes, int8, column by column: the error of each is made up for in those that follow;
    ``scales`` are fixed before. (Frantar et al., arXiv 2210.17323, with the order of its later
    releases.)"""
    step = max(1, _ROWS // weight.shape[1])
    parts = [
        _gptq(weight[start : start + step], carried, scales[start : start + step], grid)
        for start in range(0, len(weight), step)
    ]
    return torch.cat(parts)


def _gptq(weight: torch.Tensor, carried: Carrier, scales: torch.Tensor, grid: Grid) -> torch.Tensor:
    low, high = grid.limits
    order, factor = carried.order, carried.factor
    rest = weight[:, order]
    wide = scales.repeat_interleave(grid.group_size, 1)[:, order]
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, weight.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weight.shape[1])
        block, own = rest[:, start:stop].clone(), factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            column, scale = block[:, i], wide[:, start + i]
            code = (column / scale).round_().clamp_(low, high)
            codes[:, order[start + i]] = code.to(torch.int8)
            errors[:, i] = (column - code * scale) / own[i, i]
            block[:, i + 1 :].addr_(errors[:, i], own[i, i + 1 :], alpha=-1)
        rest[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    return codes


def _factor(products: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of ``products``, damped until it has one."""
    wide = products.double()
    mean = float(wide.diagonal().mean())
    while True:
        damped = wide.clone()
        damped.diagonal().add_(damping * mean + 1e-12)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper.float()
        damping *= 2


def moved(
    weight: torch.Tensor, products: torch.Tensor, differences: torch.Tensor, damping: float
) -> torch.Tensor:
    """The weight that gives on the inputs x of the rounded model the outputs nearest to those on
    the original's y: W + W·D·(X + damping)⁻¹.

    ``products`` X: the sum of x·xᵀ; ``differences`` D: the sum of (y − x)·xᵀ. (Least squares;
    Li et al., arXiv 2504.02692, carry the same term column by column.)
    """
    damped = products.double()
    damped.diagonal().add_(damping * float(damped.diagonal().mean()) + 1e-12)
    shift = torch.linalg.solve(damped, differences.double().T).T
    return weight + weight @ shift.float()


def matrix(codes: torch.Tensor, scales: torch.Tensor, grid: Grid) -> Matrix:
    """The rounded matrix as the lattice stores it."""
    return Matrix(bits=grid.bits, codes=codes.numpy(), scales=lattice.to_scales(scales.numpy()))


def plain(weight: torch.Tensor, grid: Grid) -> Matrix:
    """The weight to the nearest codes at ``plain_scales``."""
    scales = plain_scales(weight, grid)
    return matrix(nearest(weight, scales, grid), scales, grid)


def searched(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> Matrix:
    """The weight to the nearest codes at ``searched_scales``."""
    scales = searched_scales(weight, importance, grid)
    return matrix(nearest(weight, scales, grid), scales, grid)

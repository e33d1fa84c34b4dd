"""GPTQ on the lattice: column by column, the error of each is made up for in those that follow
(Frantar et al., arXiv 2210.17323, with the order of its later releases).

The codes are found as Babai's nearest plane finds them, which are the same (Chen et al., arXiv
2507.18553): from the Cholesky factor of the products themselves, without their inverse. All
tensors are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from phipipe.algorithms import rounding
from phipipe.algorithms.lattice import Matrix
from phipipe.algorithms.rounding import Grid
from phipipe.models.products import linear, product

DAMPING = 0.01  # of the mean of the products' diagonal: GPTQ's own default
_BLOCK = 128  # columns whose errors are carried on together
_SQUARE = 1024  # columns of the products that are taken together,
_TOKENS = 2048  # and inputs
_SOLVED = 512  # rows of equations that are solved together
_WEIGHTS = 2**26  # that are rounded at a time

# What to add to some rows of a weight; where they start.
Shift = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What the inputs x of a matrix are like: the sum of x·xᵀ, ``products`` [columns, columns]; the
    mean of their ``squares`` [columns]; the ``order`` of the columns, the least driven first; and
    the lower Cholesky ``factor`` of the damped products in that order."""

    products: torch.Tensor
    squares: torch.Tensor
    order: torch.Tensor
    factor: torch.Tensor

    def divide(self, sums: torch.Tensor) -> torch.Tensor:
        """``sums`` [rows, columns], in their own memory, times the inverse of the damped
        products."""
        solved = sums.T[self.order]
        _solve(self.factor, solved)
        sums[:, self.order] = solved.T
        return sums


def driven(inputs: torch.Tensor, damping: float = DAMPING) -> Driven:
    """``inputs``: [tokens, columns]."""
    products = _products(inputs)
    squares = products.diagonal()
    order = squares.argsort(stable=True)
    factor = _factor(products[order[:, None], order], damping)
    return Driven(products=products, squares=squares / len(inputs), order=order, factor=factor)


def _products(inputs: torch.Tensor) -> torch.Tensor:
    """The sum of x·xᵀ. Its upper half is its lower half."""
    columns = inputs.shape[1]
    products = inputs.new_zeros(columns, columns)
    for some in inputs.split(_TOKENS):
        turned = some.T.contiguous()
        for start in range(0, columns, _SQUARE):
            stop = start + _SQUARE
            products[start:, start:stop] += linear(turned[start:], turned[start:stop])
    for start in range(0, columns, _SQUARE):
        stop = start + _SQUARE
        products[start:stop, stop:] = products[stop:, start:stop].T
    return products


def _factor(products: torch.Tensor, damping: float) -> torch.Tensor:
    """The lower Cholesky factor of ``products``, whose memory is taken, damped until they have
    one."""
    added = damping * float(products.diagonal().double().mean()) + 1e-12
    products.diagonal().add_(added)
    while True:
        lower, failed = torch.linalg.cholesky_ex(products)
        if not failed:
            return lower
        products.diagonal().add_(added)
        added *= 2


def _solve(factor: torch.Tensor, sums: torch.Tensor) -> None:
    """``sums`` [columns, any] become the inverse of factor·factorᵀ times them: rows at a time, from
    the first to the last with the ``factor``, and back with its transpose. LAPACK's own copies
    both."""
    starts = range(0, len(factor), _SOLVED)
    for start in starts:
        stop = start + _SOLVED
        part, own = sums[start:stop], factor[start:stop, start:stop]
        part -= product(factor[start:stop, :start].contiguous(), sums[:start])
        part.copy_(torch.linalg.solve_triangular(own, part, upper=False))
    for start in reversed(starts):
        stop = start + _SOLVED
        part, own = sums[start:stop], factor[start:stop, start:stop]
        part -= product(factor[stop:, start:stop].T.contiguous(), sums[stop:])
        part.copy_(torch.linalg.solve_triangular(own.T, part, upper=True))


def shift_of_any(known: Driven, across: torch.Tensor) -> Shift:
    """What to add to some rows of any weight W, so that it gives on the inputs x of the rounded
    model the outputs nearest to those on the original's y: W·(Y − X)·Xᵀ·(X·Xᵀ)⁻¹.

    ``across``, [columns, columns]: the sum of y·xᵀ. (Least squares; Li et al., arXiv 2504.02692,
    carry the same term column by column.)
    """
    shift = known.divide(across - known.products)
    return lambda weight, _: product(weight, shift)


def shift_of_one(known: Driven, across: torch.Tensor, weight: torch.Tensor) -> Shift:
    """``shift_of_any`` for one ``weight`` [rows, columns] alone, with the sum of (W·y)·xᵀ [rows,
    columns]: less work where there are fewer rows than columns."""
    shift = known.divide(product(weight, known.products).neg_().add_(across))
    return lambda part, start: shift[start : start + len(part)]


def learned(weight: torch.Tensor, grid: Grid, known: Driven, shift: Shift | None = None) -> Matrix:
    """The ``weight`` [rows, columns], moved by ``shift``, at the scales that a search finds."""
    step = max(1, _WEIGHTS // weight.shape[1])
    codes, scales = [], []
    for start in range(0, len(weight), step):
        aim = weight[start : start + step]
        if shift:
            aim = aim + shift(aim, start)
        scales.append(rounding.searched_scales(aim, known.squares, grid))
        codes.append(carried(aim, scales[-1], grid, known))
    return rounding.matrix(torch.cat(codes), torch.cat(scales), grid)


def carried(weight: torch.Tensor, scales: torch.Tensor, grid: Grid, known: Driven) -> torch.Tensor:
    """Codes, int8 [rows, columns], at ``scales`` [rows, groups], the most driven column first."""
    low, high = grid.limits
    order, groups = known.order, known.order // grid.group_size
    aim = weight.T.contiguous().index_select(0, order)
    wide = scales.T.contiguous().index_select(0, groups)
    off = torch.empty_like(aim)  # by how much each weight is too large for its code
    codes = torch.empty_like(aim, dtype=torch.int8)
    for stop in range(len(aim), 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        made_up = product(known.factor[stop:, start:stop].T.contiguous(), off[stop:])
        own = known.factor[start:stop, start:stop].T.contiguous()
        for j in reversed(range(start, stop)):
            i = j - start
            made_up[i].addmv_(off[j + 1 : stop].T, own[i, i + 1 :])
            code = made_up[i].div_(own[i, i]).add_(aim[j]).div_(wide[j]).round_().clamp_(low, high)
            torch.addcmul(aim[j], code, wide[j], value=-1, out=off[j])
            codes[j] = code
    return codes.index_select(0, order.argsort()).T.contiguous()

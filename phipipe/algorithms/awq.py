"""AWQ's scales: which inputs of a linear get finer steps when its weights are rounded.

Lin et al., arXiv 2306.00978, section 3.2: input j of a linear is divided by s_j = mean|x_j|^alpha
and its column of weights multiplied by it, before rounding; alpha in [0, 1] is the one with which
the rounded linear's output is closest. Here scales are rounded to powers of two: multiplying a
binary number by one changes its exponent alone, so a checkpoint with the scales folded in computes
the original's very numbers, in the original's width.

Candidates are judged by 4 bits in groups along the inputs, or whole rows, with one signed scale
for each, which its largest weight sets (llama.cpp's Q4_0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phipipe.algorithms.folds import Fold

Floats = npt.NDArray[np.float32]
Exponents = npt.NDArray[np.int8]
GRID = 20  # alphas are multiples of 1 / GRID, as in the authors' program
FINEST = 8  # scales are at most two to this power, so that weights stay within fp16
QUIET = 2.0**-14  # inputs are taken to be at least this share of the largest


@dataclass(frozen=True, kw_only=True)
class Found:
    """Scales of a fold: two to the ``exponents`` [count]. ``error`` is the readers' squared output
    error with them as a share of that without; ``alpha`` 0 means none is better."""

    exponents: Exponents
    alpha: float
    error: float


def search(fold: Fold, mean: Floats, sample: Floats, weight: Floats, group: int) -> Found:
    """The best scales for readers with the rows ``weight`` [rows, inputs], rounded in groups of
    ``group``. ``mean`` [inputs]: mean of the inputs' magnitudes; ``sample`` [tokens, inputs]: some
    of the inputs themselves.
    """
    tried = np.zeros(fold.count, np.int8)
    best = Found(exponents=tried, alpha=0.0, error=1.0)
    plain = _error(sample, weight, fold.repeated(tried), group)
    for step in range(1, GRID + 1):
        candidate = exponents(fold.shared(mean), step / GRID)
        if np.array_equal(candidate, tried):
            continue
        tried = candidate
        error = _error(sample, weight, fold.repeated(candidate), group)
        if error < best.error * plain:
            best = Found(exponents=candidate, alpha=step / GRID, error=error / plain)
    return best


def exponents(mean: Floats, alpha: float) -> Exponents:
    """log2(mean^alpha) rounded, about their median and within ±``FINEST``: one factor on all inputs
    changes no rounding. Zeros where nothing came in at all."""
    largest = float(mean.max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(mean), np.int8)
    logs = alpha * np.log2(np.maximum(mean.astype(np.float64), largest * QUIET))
    rounded_logs = np.rint(logs - np.median(logs))
    return np.clip(rounded_logs, -FINEST, FINEST).astype(np.int8)


def rounded(weight: Floats, group: int) -> Floats:
    """``weight`` [rows, inputs] rounded to 4 bits in groups of ``group`` (0: all) along a row, the
    last of which may be shorter: code × scale, codes -8 … 7, scale = the largest weight / -8."""
    rows, inputs = weight.shape
    group = group or inputs
    padded = np.pad(weight, ((0, 0), (0, -inputs % group))).reshape(rows, -1, group)
    high, low = padded.max(-1, keepdims=True), padded.min(-1, keepdims=True)
    scale = np.where(high > -low, high, low) / np.float32(-8)
    codes = np.rint(padded / np.where(scale == 0, np.float32(1), scale)).clip(-8, 7)
    dense: Floats = (codes * scale).reshape(rows, -1)[:, :inputs]
    return dense


def _error(sample: Floats, weight: Floats, scales: Exponents, group: int) -> float:
    """Squared error, summed over tokens and rows, of the linear with scaled and rounded weights."""
    change = np.ldexp(rounded(np.ldexp(weight, scales), group), -scales) - weight
    return float(np.square(sample @ change.T, dtype=np.float64).sum())


def stride(tokens: int, window: int, wanted: int) -> int:
    """Every how many tokens one is taken, for about ``wanted`` of ``tokens``. It shares no factor
    with ``window``: a window's first position, on which models put enormous numbers, is taken as
    rarely as any other."""
    step = max(1, tokens // wanted)
    while math.gcd(step, window) > 1:
        step += 1
    return step

"""Products of matrices on CPUs, by whichever library of PyTorch's is the faster.

PyTorch gives fp32 to MKL, which leaves the 512 bits of AMD's processors unused: oneDNN is twice as
fast there (470 against 220 GFLOP/s on two cores of Zen 5, PyTorch 2.13). Both are fp32 throughout;
sums end a little otherwise.

A weight that is stored in 16 bits is widened in pieces that stay in the processor's cache until
they are multiplied. Memory is then read once, at 2 bytes a weight; a few rows take a fifth of the
time that a widened weight takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FEW = 128  # rows; more take longer so than with a weight that is widened before
SHORT = frozenset({torch.bfloat16, torch.float16})
_PIECE = 2**21  # values: 8 MiB. Of 6 to 12 MiB none was better; of less, calls take the time


class Quick(TorchFunctionMode):  # type: ignore[misc]
    """While this is entered, ``functional.linear`` is ``linear``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            func = linear
        return func(*args, **(kwargs or {}))


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``functional.linear``: ``input`` [..., columns] times the transpose of ``weight`` [rows,
    columns], plus ``bias`` [rows]; with gradients of all three. Where ``input`` is of fp32 and
    ``weight`` is not, the product is that of the widened weight, without gradients."""
    if input.dtype == torch.float32 and weight.dtype in SHORT:
        return _in_pieces(input, weight, bias)
    if input.device.type != "cpu" or not input.numel():
        return functional.linear(input, weight, bias)
    if input.dtype == weight.dtype == torch.float32 and _has_onednn():
        if torch.is_grad_enabled():
            return _Linear.apply(input, weight, bias)
        return _by_onednn(input, weight, bias)
    return functional.linear(input, weight, bias)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left`` [rows, inner] times ``right`` [inner, columns]: as fast as ``linear``."""
    return linear(left, right.T)


def _in_pieces(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    count, columns = weight.shape
    step = max(1, _PIECE // columns)
    values = step * columns
    room = (_ROOMS.room[:values] if values <= _PIECE else torch.empty(values)).view(step, columns)
    made = rows.new_empty(*rows.shape[:-1], count)
    for start in range(0, count, step):
        piece = room[: min(step, count - start)].copy_(weight[start : start + step])
        made[..., start : start + step] = linear(rows, piece)
    return made if bias is None else made + bias


class _Rooms(threading.local):
    """What pieces are widened in, one after another, in each thread."""

    def __init__(self) -> None:
        with torch.inference_mode(mode=False):
            self.room = torch.empty(_PIECE)


_ROOMS = _Rooms()


@cache
def _has_onednn() -> bool:
    """Whether oneDNN has more than MKL to offer here."""
    wide = str(torch.backends.cpu.get_cpu_capability()).startswith("AVX512")
    return wide and bool(torch.backends.mkldnn.is_available())


def _by_onednn(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    given = _plain(rows), _plain(weight), bias
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(*given, "none", [], "")
    return made


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or a copy of it: oneDNN has no fast product of a part of a larger matrix."""
    turned = tensor.dim() == 2 and tensor.T.is_contiguous()
    return tensor if turned else tensor.contiguous()


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """``_by_onednn`` with its gradients, which are products, too."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return _by_onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        flat = above.reshape(-1, above.shape[-1])
        below, own, offset = None, None, None
        if ctx.needs_input_grad[0]:
            below = _by_onednn(above, weight.T)
        if ctx.needs_input_grad[1]:
            own = _by_onednn(flat.T, rows.reshape(-1, rows.shape[-1]).T)
        if ctx.needs_input_grad[2]:
            offset = flat.sum(0)
        return below, own, offset

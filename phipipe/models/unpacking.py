"""Quantized weights, widened: code and scale → the number that they stand for.

Products are made in 32 bits, where they are exact or nearly so, and rounded once to the weight's
dtype. For scales of 16 bits that is to the bit what the format's own runtimes multiply with; they
make the product in 16 bits, which rounds once, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from phipipe.errors import SourceError
from phipipe.models import tensors
from phipipe.models.packed import Packed

Parts = Mapping[str, torch.Tensor]
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where a kernel looks for the 8 codes of a word
_INT8 = 127  # LLM.int8(): the largest code, for the largest weight of a row


def widen(folder: Path, one: Packed) -> torch.Tensor:
    """The weight (rows, columns) in its dtype; its pieces lie in ``folder``.

    Raises:
        SourceError: a piece holds what it cannot, such as the number of a group that is none; or
            the weight is not finite.
    """
    parts = {role: tensors.read(folder / part.file, part.name) for role, part in one.parts.items()}
    wide = torch.cat(
        [_RULES[p.rule](p, some).to(_TORCH[p.dtype]) for p, some in _bands(one, parts)]
    )
    if tuple(wide.shape) != one.shape:
        raise _odd(one, f"they make a weight of {tuple(wide.shape)}")
    if not bool(torch.isfinite(wide).all()):
        raise _odd(one, "its scales make numbers of it that are none (NaN), or infinite")
    return wide


def _bands(one: Packed, parts: Parts) -> Iterator[tuple[Packed, Parts]]:
    """The weight in bands of rows, where its pieces are stored by rows: tables of tokens are
    large."""
    rows, columns = one.shape
    if one.rule not in _BY_ROWS:
        yield one, parts
        return
    step = max(_BAND // columns, 1)
    for at in range(0, rows, step):
        some = {role: part[at : at + step] for role, part in parts.items()}
        yield replace(one, shape=(min(step, rows - at), columns)), some


_TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_BAND = 2**25  # weights
_BY_ROWS = ("affine",)


def _odd(one: Packed, what: str) -> SourceError:
    return SourceError(
        f"the pieces of `{one.name}` in the original do not make a weight: {what}",
        hint="download it again; or start from the original in 16 bits",
    )


def codes(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """``count`` codes of ``bits`` each, of every row of ``words`` (rows, 32-bit words): a stream
    of bits whose lowest come first, whatever the borders of words."""
    raw = words.contiguous().view(torch.uint8).to(torch.int32)
    at = torch.arange(count) * bits
    first, shift = at // 8, at % 8
    low = raw[:, first]
    if 8 % bits:
        high = raw[:, (first + 1).clamp(max=raw.shape[1] - 1)]
        low = low | (high << 8)
    return (low >> shift.to(torch.int32)) & (2**bits - 1)


def _groups(one: Packed, parts: Parts, count: int) -> torch.Tensor:
    """Of each column the number of its group, of ``count``."""
    columns = one.shape[1]
    if "groups" not in parts:
        return torch.arange(columns) // -(-columns // count)
    groups = parts["groups"].long()
    # older kernels counted from the end where a number is negative; nobody writes that
    if bool(((groups < 0) | (groups >= count)).any()):
        raise _odd(one, f"`{one.parts['groups'].name}` names a group beyond the {count} there are")
    return groups


def _gptq(one: Packed, parts: Parts) -> torch.Tensor:
    rows, columns = one.shape
    scales = parts["scales"].float()
    groups = _groups(one, parts, scales.shape[0])
    values = codes(parts["codes"].t(), one.bits, columns)
    zeros = codes(parts["zeros"], one.bits, rows)
    # of one beyond the highest, some kernels make 0, others 2**bits, and others carry on
    if one.facts["zero"] and bool((zeros == 2**one.bits - 1).any()):
        raise _odd(one, f"`{one.parts['zeros'].name}` has a zero point that runtimes read apart")
    zeros = zeros + one.facts["zero"]
    return (values - zeros.t()[:, groups]) * scales.t()[:, groups]


def _awq(one: Packed, parts: Parts) -> torch.Tensor:
    scales = parts["scales"].float()
    groups = _groups(one, parts, scales.shape[0])
    values = _reordered(parts["codes"])
    zeros = _reordered(parts["zeros"])
    return ((values - zeros[groups]) * scales[groups]).t()


def _reordered(words: torch.Tensor) -> torch.Tensor:
    """The codes of every row, as many as 8 per word."""
    shifts = torch.tensor(_AWQ_ORDER, dtype=torch.int32) * 4
    return ((words[:, :, None] >> shifts) & 15).flatten(1)


def _words(one: Packed, parts: Parts) -> torch.Tensor:
    rows, columns = one.shape
    if tuple(parts["shape"].tolist()) != one.shape:
        raise _odd(one, f"`{one.parts['shape'].name}` is {parts['shape'].tolist()}")
    scales = parts["scales"].float()
    groups = _groups(one, parts, scales.shape[1])
    half = 2 ** (one.bits - 1)
    values = codes(parts["codes"], one.bits, columns) - half
    if "zeros" in parts:
        zeros = codes(parts["zeros"].t(), one.bits, rows).t() - half
        values = values - zeros[:, groups]
    return values * scales[:, groups]


def _scaled(one: Packed, parts: Parts) -> torch.Tensor:
    values, scales = parts["codes"].float(), parts["scales"].float()
    if "zeros" in parts:
        values = values - _spread(one, parts["zeros"].float())
    return values * _spread(one, scales)


def _spread(one: Packed, scales: torch.Tensor) -> torch.Tensor:
    """The scale of each weight, as far as it is not the same for a whole row or column."""
    if scales.dim() < 2:
        return scales.reshape(-1, 1)
    for axis, (size, block) in enumerate(zip(one.shape, one.facts["block"], strict=True)):
        if scales.shape[axis] > 1:
            scales = scales.repeat_interleave(block, axis).narrow(axis, 0, size)
    return scales


def _affine(one: Packed, parts: Parts) -> torch.Tensor:
    columns = one.shape[1]
    scales = parts["scales"].float()
    groups = _groups(one, parts, scales.shape[1])
    values = codes(parts["codes"], one.bits, columns)
    return values * scales[:, groups] + parts["biases"].float()[:, groups]


def _int8(one: Packed, parts: Parts) -> torch.Tensor:
    if "form" in parts and int(parts["form"].reshape(-1)[0]):
        raise _odd(one, f"`{one.parts['form'].name}` is not 0: they are ordered for one GPU")
    return parts["codes"].float() * (parts["scales"][:, None] * (1 / _INT8))


def _table(one: Packed, parts: Parts) -> torch.Tensor:
    state = _state(one, parts["state"])
    scales = parts["scales"].float()
    if "outer" in parts:
        known = parts["outer_table"][parts["scales"].long()]
        scales = known * _blocked(one, parts["outer"], state.outer_block, len(known))
        scales = scales + state.offset
    rows, columns = one.shape
    pairs = parts["codes"].reshape(-1)
    values = torch.stack((pairs >> 4, pairs & 15), 1).reshape(-1)[: rows * columns]
    table = parts["table"][values.long()]
    return (table * _blocked(one, scales, state.block, len(table))).reshape(rows, columns)


def _blocked(one: Packed, scales: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """For each of ``count`` numbers the scale of its block of ``size``."""
    if len(scales) != -(-count // size):
        raise _odd(one, f"it has {len(scales)} scales for {count} numbers in blocks of {size}")
    return scales.repeat_interleave(size)[:count]


@dataclass(frozen=True)
class _State:
    """bitsandbytes' settings of a weight: weights in a block, blocks in an outer one, the mean of
    the scales."""

    block: int
    outer_block: int = 1
    offset: float = 0.0


def _state(one: Packed, raw: torch.Tensor) -> _State:
    """The settings of the weight, which lie beside it as JSON in bytes."""
    name = one.parts["state"].name
    try:
        state = json.loads(bytes(raw.tolist()))
        kept = _State(int(state["blocksize"]))
        if "outer" in one.parts:
            outer = int(state["nested_blocksize"])
            kept = replace(kept, outer_block=outer, offset=float(state["nested_offset"]))
        fits = tuple(state["shape"]) == one.shape
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _odd(one, f"`{name}` is no JSON of settings") from error
    if not fits or not (0 < kept.block < 2**20 and 0 < kept.outer_block < 2**20):
        raise _odd(one, f"`{name}` is of another weight")
    return kept


_RULES: Mapping[str, Callable[[Packed, Parts], torch.Tensor]] = {
    "affine": _affine,
    "awq": _awq,
    "gptq": _gptq,
    "int8": _int8,
    "scaled": _scaled,
    "table": _table,
    "words": _words,
}

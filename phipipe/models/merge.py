"""The step that merges a LoRA adapter into its base: tensor by tensor, a stretch of rows in memory
at a time.

Products and sums are in 64 bits and rounded once, to the dtype of the base's tensor: the bytes do
not depend on how many threads a machine has, and differ from PEFT's own merge by the rounding that
PEFT does in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from phipipe.errors import SourceError
from phipipe.models import (
    adapter_view,
    adapters,
    checkpoints,
    finite,
    first_layers,
    layouts,
    mapped,
    tensor_places,
)
from phipipe.models.adapter_changes import Change, Low
from phipipe.models.adapter_files import WEIGHTS
from phipipe.models.adapters import Merged
from phipipe.models.tensor_places import Place
from phipipe.steps import Inputs, Params

ROWS = 4096  # of a matrix that are merged at once


def merge(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["base"]``, a checkpoint, with the adapter in ``inputs["adapter"]`` merged
    into it.

    Leaves an ordinary checkpoint in the base's dtypes, with the adapter's tokenizer if it has one.

    Raises:
        SourceError: the adapter does not fit, or what comes out is no finite number.
    """
    folder, adapter = inputs["base"], inputs["adapter"]
    base = checkpoints.read(folder)
    merged = adapters.merged(base, adapter)
    weights, added = mapped.Checkpoint(folder), _opened(adapter)
    if foreign := [c.start for c in merged.changes.values() if c.start not in weights.places]:
        raise SourceError(
            f"the base stores no tensor `{foreign[0]}` of its own, which the adapter changes",
            hint="give the base in the layout of its original repository",
        )
    _check_tie(merged, added)
    kept: dict[str, Place] = {}
    changed: dict[str, Callable[[], bytes]] = {}
    for name in _names(weights, merged):
        change = merged.changes.get(name)
        kept[name] = weights.places[change.start if change else name]
        if change:
            kept[name] = Place(
                file="", offset=0, dtype=kept[name].dtype, shape=_shape(change, kept[name], added)
            )
            changed[name] = partial(_bytes, name, change, kept[name], (weights, added))
    tensor_places.write(out / first_layers.WEIGHTS, folder, kept, changed)
    adapter_view.write(folder, adapter, merged.checkpoint, out)
    checkpoints.read(out)
    finite.check(out)


def _opened(adapter: Path) -> mapped.Checkpoint:
    return mapped.Checkpoint(adapter, tensor_places.of_file(adapter / WEIGHTS))


def _names(weights: mapped.Checkpoint, merged: Merged) -> list[str]:
    """Names of the tensors that come out: the base's, without what every tool makes itself, and
    those that are new."""
    names = [name for name in weights.places if not layouts.is_spare(name)]
    head = [layouts.HEAD] if layouts.HEAD in merged.shapes else []
    return list(dict.fromkeys([*names, *head, *merged.changes]))


def _check_tie(merged: Merged, added: mapped.Checkpoint) -> None:
    """Two tables that one tied tensor is saved as must be the same."""
    stored = [
        name
        for name in added.places
        if name.endswith((layouts.HEAD, layouts.EMBEDDING)) and ".lora_" not in name
    ]
    same = len(stored) < 2 or torch.equal(added.tensor(stored[0]), added.tensor(stored[1]))
    if merged.checkpoint.tied and not same:
        raise SourceError(
            "the adapter has an embedding and a head that differ, and its base ties them",
            hint="name both in `modules_to_save` of the adapter, if they were trained apart",
        )


def _shape(change: Change, place: Place, added: mapped.Checkpoint) -> tuple[int, ...]:
    return added.places[change.saved].shape if change.saved else place.shape


def _bytes(
    name: str, change: Change, place: Place, stored: tuple[mapped.Checkpoint, mapped.Checkpoint]
) -> bytes:
    """The tensor ``name`` that comes out, as it is stored."""
    weights, added = stored
    start = added.tensor(change.saved) if change.saved else weights.tensor(change.start)
    dtype: torch.dtype = getattr(torch, mapped.DTYPES[place.dtype])
    result = start.to(dtype, copy=True)
    for low in change.lows:
        _add(result, start, low, added)
    if not _is_finite(result):
        _refuse_odd(name, change, stored)
    raw: bytes = result.contiguous().view(torch.uint8).numpy().tobytes()
    return raw


def _add(result: torch.Tensor, start: torch.Tensor, low: Low, added: mapped.Checkpoint) -> None:
    """Write the rows of ``start`` that ``low`` changes into ``result``."""
    up, down = added.tensor(low.up).double(), added.tensor(low.down).double()
    if low.table:
        up, down = down.T, up.T
    first, last = low.rows
    shift = low.of[0] - first  # from rows of the tensor to rows of the module
    lengths = added.tensor(low.lengths).double().reshape(-1, 1) if low.lengths else None
    for row in range(first, last, ROWS):
        rows = slice(row, min(row + ROWS, last))
        own = slice(rows.start + shift, rows.stop + shift)
        value = torch.addmm(start[rows].double(), up[own], down, alpha=low.scale)
        if lengths is not None:  # DoRA: Liu et al. 2024, arXiv:2402.09353, equation 5
            value *= lengths[own] / torch.linalg.vector_norm(value, dim=1, keepdim=True)
        result[rows] = value.to(result.dtype)


def _is_finite(tensor: torch.Tensor) -> bool:
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(part).all()) for part in flat.split(2**24))


def _refuse_odd(
    name: str, change: Change, stored: tuple[mapped.Checkpoint, mapped.Checkpoint]
) -> None:
    weights, added = stored
    own = [low_name for low in change.lows for low_name in (low.down, low.up, low.lengths)]
    for tensor in filter(None, [*own, change.saved]):
        if not _is_finite(added.tensor(tensor)):
            raise SourceError(
                f"the adapter has NaN or infinite numbers in `{tensor}`",
                hint="its training went wrong: take an earlier save of it",
            )
    if not _is_finite(weights.tensor(change.start)):
        raise SourceError(
            f"the base has NaN or infinite numbers in `{change.start}`",
            hint="take the base again from where it comes from",
        )
    raise SourceError(
        f"`{name}` with the adapter merged in is beyond what "
        f"{weights.places[change.start].dtype} can hold",
        hint="give the base in bfloat16 or 32 bits",
    )

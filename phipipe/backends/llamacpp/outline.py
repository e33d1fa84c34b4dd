"""What llama.cpp's converter would write of a checkpoint, without the matrices that are rows of the
checkpoint's own.

Which rows of which matrix it takes is asked of the converter itself: it gets matrices whose values
are the numbers of their rows, then matrices whose values are those of their columns. What comes out
as rows of numbers, each column in its place, is a choice of rows; anything else was computed, and
is kept as the converter makes it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from phipipe.backends.llamacpp import MODEL, MODELFILE, converter, modelfile
from phipipe.backends.llamacpp.rows import FILE, KINDS, LIST, ORDERS
from phipipe.models import tensor_places
from phipipe.models.staging import staged
from phipipe.models.tensor_places import Place
from phipipe.steps import Inputs, Json, Params

if TYPE_CHECKING:
    from auto_round.export.export_to_gguf.conversion import TextModel

_EXACT = 2**24  # integers up to here are themselves in float32, which converters work in

Made = Callable[[], "TextModel"]
Seen = dict[str, torch.Tensor]


class Taken(NamedTuple):
    """The rows that one tensor of the file is: of ``source`` in this ``order``."""

    source: str
    order: npt.NDArray[np.int64]

    @property
    def first(self) -> int | None:
        """The first row, where the others follow one by one."""
        steps = np.diff(self.order)
        return int(self.order[0]) if (steps == 1).all() else None


def outline(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what ``inputs["source"]``, a checkpoint, is as a GGUF in ``params["type"]``, as
    ``rows.Outline`` reads it, and an Ollama ``Modelfile``.

    Raises:
        StepFailed: the converter does not know the architecture.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".outline-") as scratch:
        # A folder of a neutral name: the converter reads names and sizes out of folder names.
        source = staged(inputs["source"], params["config_patch"], Path(scratch) / "model")

        def made() -> TextModel:
            return converter.opened(source, out / FILE, params["type"], params["name"])

        with torch.inference_mode():
            _write(made(), taken(made, tensor_places.places(source)), out)
    (out / MODELFILE).write_bytes(
        modelfile.text(inputs["source"], MODEL, params["context"]).encode()
    )


def _write(model: TextModel, rows: Mapping[str, Taken], out: Path) -> None:
    """What ``TextModel.write`` does, but for the data of ``rows``, and the list of all tensors."""
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)  # counts the weights
    (written,) = model.gguf_writer.tensors
    listed = [
        _entry(name, one.dtype.name, one.shape, rows.get(name)) for name, one in written.items()
    ]
    for name in rows:
        del written[name]
    model.gguf_writer.write_header_to_file(path=model.fname_out)
    model.gguf_writer.write_kv_data_to_file()
    model.gguf_writer.write_tensors_to_file()
    model.gguf_writer.close()
    np.savez(
        out / ORDERS,
        allow_pickle=False,
        **{name: one.order.astype(np.int32) for name, one in rows.items() if one.first is None},
    )
    (out / LIST).write_text(json.dumps({"tensors": listed}, indent=1) + "\n", "utf-8")


def _entry(name: str, kind: str, shape: Iterable[int], rows: Taken | None) -> dict[str, Json]:
    told = {"name": name, "type": kind, "shape": [int(n) for n in shape][::-1]}
    return told | {"source": rows and rows.source, "first": (rows and rows.first) or 0}


def taken(made: Made, places: Mapping[str, Place]) -> dict[str, Taken]:
    """Tensor of the file → its rows, of all that are nothing but rows of one matrix of the
    checkpoint; ``made`` opens the converter anew."""
    bases = _bases(places)
    rows = _passed(made(), places, lambda name, shape: _numbers(bases[name], shape[0])[:, None])
    columns = _passed(made(), places, lambda name, shape: _numbers(0, shape[1])[None])
    found = {}
    for name in rows.keys() & columns.keys():
        numbers, across = rows[name], columns[name]
        alike = torch.equal(numbers, numbers[:, :1].expand_as(numbers))
        if alike and torch.equal(across, _numbers(0, across.shape[1])[None].expand_as(across)):
            one = _taken(numbers[:, 0].to(torch.int64).numpy(), bases, places)
            if one is not None:
                found[name] = one
    return found


def _bases(places: Mapping[str, Place]) -> dict[str, int]:
    """Matrix → the number of its first row, as far as numbers are exact; no two rows share one."""
    bases, free = {}, 1
    for name, place in places.items():
        is_read = place.dtype in KINDS and len(place.shape) == 2 and place.shape[1] > 1
        if is_read and max(free + place.shape[0], place.shape[1]) < _EXACT:
            bases[name] = free
            free += place.shape[0]
    return bases


def _numbers(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)


def _passed(
    model: TextModel,
    places: Mapping[str, Place],
    values: Callable[[str, tuple[int, ...]], torch.Tensor],
) -> Seen:
    """What the converter makes of matrices of these ``values``, which are broadcast to the shape;
    nothing is written."""
    known, seen = _bases(places), Seen()
    real_tensors, modify = model.get_tensors, model.modify_tensors

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, lazy in real_tensors():
            shape = tuple(lazy.shape)
            traced = name in known and shape == tuple(places[name].shape)
            yield name, values(name, shape).expand(shape) if traced else lazy

    def look(data: torch.Tensor, name: str, layer: int | None) -> Iterable[tuple[str, object]]:
        for new_name, changed in modify(data, name, layer):
            if isinstance(changed, torch.Tensor) and changed.ndim == 2:
                seen[new_name] = changed
        return ()

    model.get_tensors, model.modify_tensors = tensors, look
    model.prepare_tensors()
    return seen


def _taken(
    numbers: npt.NDArray[np.int64], bases: Mapping[str, int], places: Mapping[str, Place]
) -> Taken | None:
    """The rows with these ``numbers``; None where they are not of one matrix."""
    names = list(bases)
    first = np.fromiter(bases.values(), np.int64)
    (which, *others) = np.unique(np.searchsorted(first, numbers, side="right") - 1)
    if others or which < 0:
        return None
    order = numbers - first[which]
    inside = order.min() >= 0 and order.max() < places[names[which]].shape[0]
    return Taken(names[which], order) if inside else None

"""Which matrix of the checkpoint each buffer of a float ``.tflite`` holds.

Names in the file say little: litert-torch joins those of operators that it fuses, and gives a
weight the name of its neighbour. The values say it, which the conversion leaves as they are; but
for LayerNorm, whose scales it may fold into the columns of what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from phipipe.backends.litert import stored
from phipipe.backends.litert.stored import LOOKUP
from phipipe.errors import StepFailed
from phipipe.models import linears, matrices
from phipipe.models.matrices import Stored

_SAMPLE = 64  # rows of each matrix that are compared
_NEAR = 1e-5  # what folding in float32 may change of them, as a share
Floats = npt.NDArray[np.float32]


def in_buffers(path: Path, checkpoint: Path, *, folded: bool) -> dict[int, str]:
    """The names of the matrices in the float model ``path``, a conversion of ``checkpoint``. A head
    that is tied to the embedding lies in its buffer, and has its name. ``folded``: with those whose
    columns are scaled.

    Raises:
        StepFailed: a buffer holds no matrix of the checkpoint, or may hold several.
    """
    model = stored.model_of(path)
    originals, found = matrices.of(checkpoint), dict[int, str]()
    for number, (tensor, readers) in _buffers(model).items():
        values = np.frombuffer(model.buffers[number].data, np.float32).reshape(tensor.shape)
        names = [name for name, one in originals.items() if _is_same(one, values)]
        if folded and not names:
            names = [name for name, one in originals.items() if _is_folded(one, values)]
        if len(names) > 1:  # an embedding and a head that happen to be equal
            names = [name for name in names if (name == linears.EMBEDDING) == (LOOKUP in readers)]
        if len(names) != 1:
            told = " and ".join(f"`{name}`" for name in names) or "no matrix of the checkpoint"
            raise StepFailed(
                f"`{tensor.name.decode()}` of the converted model holds {told}",
                hint="matrices are known by their values here: without `weights` and "
                "`quantize.map` none has to be known",
            )
        found[number] = names[0]
    return found


def _buffers(model: schema.ModelT) -> dict[int, tuple[schema.TensorT, frozenset[str]]]:
    """Number of a buffer with a matrix → its tensor, and the operators that read it."""
    found: dict[int, tuple[schema.TensorT, frozenset[str]]] = {}
    for tensor, reader in _read(model):
        _, readers = found.get(tensor.buffer, (tensor, frozenset()))
        found[tensor.buffer] = tensor, readers | {reader}
    return found


def _read(model: schema.ModelT) -> Iterator[tuple[schema.TensorT, str]]:
    for graph in model.subgraphs:
        yield from stored.matrices(model, graph)


def _is_same(one: Stored, values: Floats) -> bool:
    return one.shape == values.shape and bool(np.array_equal(*_samples(one, values)))


def _is_folded(one: Stored, values: Floats) -> bool:
    """Whether ``values`` are those of ``one`` but for a factor for each column."""
    if one.shape != values.shape:
        return False
    original, found = _samples(one, values)
    squares = np.square(original).sum(0)
    factors = (original * found).sum(0) / np.maximum(squares, np.finfo(np.float32).tiny)
    off = np.linalg.norm(original * factors - found)
    return bool(off <= _NEAR * np.linalg.norm(found))


def _samples(one: Stored, values: Floats) -> tuple[Floats, Floats]:
    """Some rows of both, float32."""
    sample = np.unique(np.linspace(0, len(values) - 1, _SAMPLE).astype(np.intp))
    return one.rows(sample), values[sample]

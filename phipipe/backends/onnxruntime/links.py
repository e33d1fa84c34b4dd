"""The builder's graph without the builder's weights: initializers that point into the checkpoint's
own files.

onnxruntime-genai's builder loads a whole model and writes it out in fp32 before anything is
rounded: 15 GB in memory, and on disk, for 4 G parameters. Here it works on a model whose weights
are mapped files, and what it would write as an initializer is noted as a link: file, offset, dtype,
and whether the graph wants it transposed (ONNX stores a linear layer's weight as [in, out], PyTorch
as [out, in]). Rounding then reads the checkpoint itself, piece by piece.

A link is an external initializer whose location is a file of the checkpoint, with two properties of
our own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir
import torch
from onnx import ModelProto, TensorProto, helper

from phipipe.backends.onnxruntime.graph import place
from phipipe.backends.onnxruntime.layout import DATA
from phipipe.errors import StepFailed
from phipipe.models import mapped, tensor_places

# Properties of a linked initializer.
DTYPE, TRANSPOSED = "checkpoint_dtype", "checkpoint_transposed"
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes
_KINDS: dict[str, type] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]


def link(
    tensor: object, name: str, dtype: onnx_ir.DataType, checkpoint: mapped.Checkpoint
) -> onnx_ir.ExternalTensor | None:
    """An initializer that points to ``tensor``'s bytes; None if they are not in a file as they
    stand, or turned."""
    if not isinstance(tensor, torch.Tensor):
        return None
    kinds = [kind for kind, word in mapped.DTYPES.items() if str(tensor.dtype)[6:] == word]
    where = checkpoint.where(tensor) if kinds else None
    if where is None:
        return None
    turned = not tensor.is_contiguous()
    if turned and not (tensor.dim() == 2 and tensor.T.is_contiguous()):
        return None
    file, offset = where
    pointer = onnx_ir.ExternalTensor(
        file,
        offset,
        tensor.numel() * _WIDTHS[kinds[0]],
        dtype,
        shape=onnx_ir.Shape(tuple(tensor.shape)),
        name=name,
        base_dir=checkpoint.folder,
    )
    pointer.metadata_props.update({DTYPE: kinds[0], TRANSPOSED: str(int(turned))})
    return pointer


def check(folder: Path, model: ModelProto, checkpoint: Path) -> None:
    """Every initializer is whole, in the data file or in ``checkpoint``, all of whose weights the
    graph refers to.

    Raises:
        StepFailed: names what is missing.
    """
    weights, linked = Weights(folder, checkpoint), 0
    for tensor in model.graph.initializer:
        size = weights.raw(tensor).size
        if tensor.metadata_props:
            linked += size
            weights.matrix(tensor)
    matrices = sum(
        one.size_bytes for one in tensor_places.places(checkpoint).values() if len(one.shape) > 1
    )
    if linked != matrices:
        raise StepFailed(
            f"the graph refers to {linked} bytes of the checkpoint's matrices, which are {matrices}"
        )


class Weights:
    """The initializers of a converted graph, read where they lie: in its data file, or in the
    checkpoint.

    Raises:
        StepFailed: a link names a file that is not there, or is too short.
    """

    def __init__(self, folder: Path, checkpoint: Path | None = None) -> None:
        self._folder, self._checkpoint = folder, checkpoint
        self._files: dict[str, npt.NDArray[np.uint8]] = {}

    def raw(self, tensor: TensorProto) -> npt.NDArray[np.uint8]:
        """The bytes that ``tensor`` is stored as; a link's are in the checkpoint's dtype, and
        perhaps turned."""
        file, offset, length = place(tensor)
        if file not in self._files:
            folder = self._checkpoint if file != DATA and self._checkpoint else self._folder
            if not (folder / file).is_file():
                raise StepFailed(f"weight `{tensor.name}` lies in `{file}`, which is not there")
            self._files[file] = np.memmap(folder / file, mode="r")
        values = self._files[file][offset : offset + length]
        if len(values) != length:
            raise StepFailed(f"weight `{tensor.name}` lies in `{file}`, which is too short")
        return values

    def matrix(self, tensor: TensorProto) -> Matrix:
        """``tensor``, of two dimensions, as something that can be read in slices."""
        properties = {entry.key: entry.value for entry in tensor.metadata_props}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        stored = properties.get(DTYPE, "F16" if kind.itemsize == 2 else "F32")
        turned = properties.get(TRANSPOSED) == "1"
        return Matrix(self.raw(tensor), tuple(tensor.dims), stored, turned, kind)

    def chunks(self, tensor: TensorProto, elements: int) -> Iterator[bytes]:
        """The bytes of ``tensor`` in its own dtype, about ``elements`` values at a time."""
        raw = self.raw(tensor)
        if not tensor.metadata_props:
            yield from (
                raw[start : start + 4 * elements].tobytes()
                for start in range(0, len(raw), 4 * elements)
            )
            return
        matrix = self.matrix(tensor)
        step = max(1, elements // math.prod(matrix.shape[1:]))
        yield from (
            matrix.part(start, start + step, 0).tobytes()
            for start in range(0, matrix.shape[0], step)
        )


class Matrix:
    """A weight of ``shape`` whose values are stored as ``stored`` ("F32", "F16", "BF16"), wanted as
    ``dtype``."""

    def __init__(
        self,
        raw: npt.NDArray[np.uint8],
        shape: tuple[int, ...],
        stored: str,
        turned: bool,
        dtype: np.dtype[np.floating],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._stored, self._turned = stored, turned
        values: npt.NDArray[np.generic] = raw.view(_KINDS[stored])
        self._values = values.reshape(shape[::-1] if turned else shape)

    def part(self, start: int, stop: int, axis: int) -> Floats:
        """Rows (axis 0) or columns (axis 1) from ``start`` to ``stop``, contiguous, as
        ``dtype``."""
        values = (
            self._values[start:stop] if (axis == 0) != self._turned else self._values[:, start:stop]
        )
        values = values.T if self._turned else values
        if self._stored != "BF16":
            return np.ascontiguousarray(values, dtype=self.dtype)
        # bf16 is the upper half of fp32: one pass over the memory, three times as fast as cast,
        # shift and transpose
        wide = np.zeros(values.shape, np.uint32)
        wide.view(np.uint16)[:, 1 if sys.byteorder == "little" else 0 :: 2] = values
        return wide.view(np.float32).astype(self.dtype, copy=False)

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

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.backends.onnxruntime import graph
from phipipe.errors import StepFailed
from phipipe.models import mapped, tensor_places

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DTYPE, TRANSPOSED = (
    "checkpoint_dtype",
    "checkpoint_transposed",
)  # properties of a linked initializer
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


@contextlib.contextmanager
def lean_builder(checkpoint: mapped.Checkpoint, *, linked: bool) -> Iterator[None]:
    """Have the builder load its weights from ``checkpoint``'s files; ``linked``: and save links
    instead of weights."""
    from unittest.mock import patch

    import torch
    from onnxruntime_genai.models import builder  # noqa: F401 (makes `builders` importable)
    from torch.overrides import TorchFunctionMode
    from transformers import AutoModelForCausalLM

    model_class = sys.modules["builders.base"].Model

    class JoinsViews(TorchFunctionMode):  # type: ignore[misc]
        """``torch.cat`` of rows that follow one another in a file is a view of that file."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            joined = _joined(*args, **(kwargs or {})) if func is torch.cat else None
            return func(*args, **(kwargs or {})) if joined is None else joined

    with contextlib.ExitStack() as stack:
        stack.enter_context(
            patch.object(
                AutoModelForCausalLM, "from_pretrained", lambda *_, **__: checkpoint.model()
            )
        )
        # the builder makes layers to put slices of others into, and they need not be filled with
        # random numbers first
        stack.enter_context(patch.object(torch.nn.Linear, "reset_parameters", lambda self: None))
        stack.enter_context(JoinsViews())
        if linked:
            noting = _noting(model_class.make_initializer, checkpoint)
            stack.enter_context(patch.object(model_class, "make_initializer", noting))
            stack.enter_context(patch.object(model_class, "save_model", _save))
        yield


def _joined(tensors: Any, dim: int = 0, **_: Any) -> Any:
    """The rows of ``tensors`` as one view, if they lie one after another in the same storage; else
    None."""
    first = tensors[0]
    if dim != 0 or first.dim() == 0:
        return None
    end = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        alike = (
            tensor.dtype == first.dtype
            and tensor.shape[1:] == first.shape[1:]
            and tensor.is_contiguous()
        )
        if not same or not alike or tensor.storage_offset() != end:
            return None
        end += tensor.numel()
    rows = sum(tensor.shape[0] for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _noting(make: Any, checkpoint: mapped.Checkpoint) -> Any:
    """The builder's ``make_initializer``, which notes a link where the tensor is one of the
    checkpoint's."""

    def noting(self: Any, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        make(self, tensor, name, to=to, raw=raw)
        link = None if to is None or raw else _link(tensor, name, to, checkpoint)
        if link is not None:
            self.model.graph.initializers[name].const_value = link

    return noting


def _link(tensor: Any, name: str, dtype: Any, checkpoint: mapped.Checkpoint) -> Any:
    """An initializer that points to ``tensor``'s bytes; None if they are not in a file as they
    stand, or turned."""
    import onnx_ir
    import torch

    kind = next(
        (
            k
            for k, n in mapped.DTYPES.items()
            if isinstance(tensor, torch.Tensor) and str(tensor.dtype)[6:] == n
        ),
        "",
    )
    where = checkpoint.where(tensor) if kind else None
    turned = where is not None and not tensor.is_contiguous()
    if where is None or (turned and not (tensor.dim() == 2 and tensor.T.is_contiguous())):
        return None
    file, offset = where
    link = onnx_ir.ExternalTensor(
        file,
        offset,
        tensor.numel() * _WIDTHS[kind],
        dtype,
        shape=onnx_ir.Shape(tuple(tensor.shape)),
        name=name,
        base_dir=checkpoint.folder,
    )
    link.metadata_props.update({DTYPE: kind, TRANSPOSED: str(int(turned))})
    return link


def _save(self: Any, folder: str) -> None:
    """In place of the builder's ``save_model``: links stay links, everything else goes into the
    data file."""
    import onnx_ir

    self.model.graph.sort()
    with (Path(folder) / graph.DATA).open("wb") as stream:
        for name, value in self.model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            raw, start = tensor.tobytes(), stream.tell()
            stream.write(raw)
            value.const_value = onnx_ir.ExternalTensor(
                graph.DATA,
                start,
                len(raw),
                tensor.dtype,
                shape=tensor.shape,
                name=name,
                base_dir=folder,
            )
    self.stamp_build_metadata(self.model)
    onnx_ir.save(self.model, Path(folder) / self.filename)
    cache = Path(self.cache_dir)
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()


def check(folder: Path, model: Any, checkpoint: Path) -> None:
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
        place.size_bytes
        for place in tensor_places.places(checkpoint).values()
        if len(place.shape) > 1
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

    def raw(self, tensor: Any) -> npt.NDArray[np.uint8]:
        """The bytes that ``tensor`` is stored as; a link's are in the checkpoint's dtype, and
        perhaps turned."""
        import numpy as np

        file, offset, length = graph.place(tensor)
        if file not in self._files:
            folder = self._checkpoint if file != graph.DATA and self._checkpoint else self._folder
            if not (folder / file).is_file():
                raise StepFailed(f"weight `{tensor.name}` lies in `{file}`, which is not there")
            self._files[file] = np.memmap(folder / file, mode="r")
        found = self._files[file][offset : offset + length]
        if len(found) != length:
            raise StepFailed(f"weight `{tensor.name}` lies in `{file}`, which is too short")
        return found

    def matrix(self, tensor: Any) -> Matrix:
        """``tensor``, of two dimensions, as something that can be read in slices."""
        from onnx import helper

        properties = {entry.key: entry.value for entry in tensor.metadata_props}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        stored = properties.get(DTYPE, "F16" if kind.itemsize == 2 else "F32")
        turned = properties.get(TRANSPOSED) == "1"
        return Matrix(self.raw(tensor), tuple(tensor.dims), stored, turned, kind)

    def chunks(self, tensor: Any, elements: int) -> Iterator[bytes]:
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
        dtype: np.dtype[Any],
    ) -> None:
        import numpy as np

        self.shape, self.dtype = shape, dtype
        self._stored, self._turned = stored, turned
        kind: Any = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[stored]
        self._values = raw.view(kind).reshape(shape[::-1] if turned else shape)

    def part(self, start: int, stop: int, axis: int) -> npt.NDArray[Any]:
        """Rows (axis 0) or columns (axis 1) from ``start`` to ``stop``, contiguous, as
        ``dtype``."""
        import numpy as np

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

"""Weights that are never all in memory: read from a checkpoint when asked for, written once beside
several graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALIGNMENT = 4096  # bytes; a page, so that onnxruntime maps a constant instead of reading it


class Weights(Mapping[str, "npt.NDArray[np.float32]"]):
    """The tensors of the checkpoint in ``folder`` by name, each converted to float32 when it is
    asked for.

    A tied LM head is there under its own name. The last tensor is kept: joined linears are asked
    for part by part.
    """

    def __init__(self, folder: Path) -> None:
        from phipipe.models import weight_files

        self._places = {
            name: place
            for file in weight_files.choose(folder).files
            for name, place in _places(folder / file)
        }
        self._places.setdefault("lm_head.weight", self._places["model.embed_tokens.weight"])
        self._last: tuple[str, Any] = ("", None)

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        import numpy as np

        if self._last[0] != name:
            path, offset, count, kind, shape = self._places[name]
            raw = np.fromfile(
                path, np.uint8, count, offset=offset
            )  # a mapping would stay, and count as memory
            if kind == "BF16":
                value = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                value = raw.view({"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
            self._last = (name, value.reshape(shape))
        found: npt.NDArray[np.float32] = self._last[1]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _places(path: Path) -> Iterator[tuple[str, tuple[Path, int, int, str, list[int]]]]:
    """Name, and file, offset, bytes, type and shape, of every tensor of a safetensors file: JSON,
    then the data."""
    from phipipe.models import weights

    for tensor in weights.tensors(path):
        yield (
            tensor.name,
            (path, tensor.offset, tensor.size_bytes, tensor.dtype, list(tensor.shape)),
        )


class DataFile:
    """A file of constants ("external data" in ONNX's terms) that several graphs beside it refer to.

    A protobuf cannot exceed 2 GB, and graphs of different lengths have the same weights: each is
    written once.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._stream = path.open("wb")
        self._tensors: dict[str, Any] = {}

    def place(
        self, name: str, make: Callable[[], npt.NDArray[Any]], kind: int | None = None
    ) -> Any:
        """The ``onnx.TensorProto`` of the constant ``name``, whose value ``make`` gives when it is
        not yet here.

        ``kind`` is the ONNX type where it is not the array's: INT4 packs the int8 values of
        ``make`` in pairs.
        """
        import numpy as np
        from onnx import TensorProto, helper

        if name in self._tensors:
            return self._tensors[name]
        value = make()
        kind = helper.np_dtype_to_tensor_dtype(value.dtype) if kind is None else kind
        stored = pairs(value) if kind == TensorProto.INT4 else np.ascontiguousarray(value)
        self._stream.write(b"\0" * (-self._stream.tell() % ALIGNMENT))
        tensor = TensorProto(
            name=name, data_type=kind, dims=value.shape, data_location=TensorProto.EXTERNAL
        )
        facts = {"location": self._name, "offset": self._stream.tell(), "length": stored.nbytes}
        for key, fact in facts.items():
            tensor.external_data.add(key=key, value=str(fact))
        self._stream.write(stored.data)
        self._tensors[name] = tensor
        return tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def pairs(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Numbers of 4 bits, two to a byte, the first in the lower half; an odd one out is paired with
    0."""
    import numpy as np

    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8) & np.uint8(15)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)


def value_of(tensor: Any, folder: Path) -> npt.NDArray[np.float32]:
    """The float32 constant ``tensor`` of a graph in ``folder``, mapped from its data file."""
    import numpy as np

    facts = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(tensor.dims)
    return np.memmap(folder / facts["location"], np.float32, "r", int(facts["offset"]), shape)

"""Whether all weights of a GGUF are numbers: floats as they are, blocks by their scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe import progress
from phipipe.errors import SourceError
from phipipe.models import finite, gguf_files
from phipipe.models.gguf_files import TYPES, Tensor

# Where in a block its scales lie, each of two bytes (ggml-common.h): all else are whole numbers.
SCALES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
_SIZES = {kind: size for kind, _, size in TYPES.values()}
_BLOCKS = 2**17  # that are looked at at once


def check(path: Path) -> None:
    """Look at every weight of the GGUF at ``path``.

    Raises:
        SourceError: names the first tensor with an infinite weight or a NaN.
    """
    tensors = list(gguf_files.read(path).tensors.values())
    for tensor in progress.each(tensors, "tensors checked"):
        if _is_odd(path, tensor):
            raise SourceError(
                f"the original has NaN or infinite weights in tensor `{tensor.name}` (`{path}`): "
                f"no runtime could compute with it",
                hint="download it again; or take another file of this model",
            )


def _is_odd(path: Path, tensor: Tensor) -> bool:
    size, left = _SIZES[tensor.kind], tensor.size_bytes
    with path.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        while left:
            raw = stream.read(min(left, size * _BLOCKS))
            if not raw:
                return False
            left -= len(raw)
            if any(
                finite.first_odd(part, dtype) is not None for part, dtype in _floats(raw, tensor)
            ):
                return True
    return False


def _floats(raw: bytes, tensor: Tensor) -> list[tuple[bytes, str]]:
    """The floats of whole blocks, and their dtype; of a scale its higher byte alone tells."""
    if tensor.kind not in SCALES:
        return [(raw, tensor.kind)]
    ends = (raw[at + 1 :: _SIZES[tensor.kind]] for at in SCALES[tensor.kind])
    return [(end, finite.HIGH_BYTE) for end in ends]

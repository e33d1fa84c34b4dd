"""Learned weights as a GGUF: a copy of the unquantized one with blocks of Q4_0 and Q8_0 in place of
its matrices, written as they are.

Converters reorder the rows of queries and keys for some architectures: where the file's rows are
not the checkpoint's, they must be the ones of llama.cpp's ``permute`` (conversion/llama.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from phipipe.algorithms.lattice import Lattice, Matrix, Packed
from phipipe.backends.llamacpp.blocks import Order, blocks, permuted, shape_of
from phipipe.backends.llamacpp.names import tensor_of
from phipipe.errors import StepFailed
from phipipe.models import matrices
from phipipe.progress import report

KINDS = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}
_PART = 2**22  # weights that are worked on at a time
_SAMPLE = 64  # rows of each matrix that are compared with the checkpoint's
_NEAR = 0.01  # what rounding to the file's own width may change of them, as a share


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A learned matrix, and where each row of the file's comes from."""

    stored: Packed
    order: Order

    def parts(self) -> Iterator[tuple[int, Matrix]]:
        """Some rows at a time in the file's order, and the first one's number."""
        step = max(1, _PART // self.stored.shape[1])
        for start in range(0, len(self.order), step):
            chosen = self.order[start : start + step]
            codes, scales = self.stored.codes[chosen], self.stored.scales[chosen]
            yield start, Packed(bits=self.stored.bits, codes=codes, scales=scales).matrix()


def write(source: Path, target: Path, weights: Path, checkpoint: Path) -> None:
    """Write the GGUF ``source``, an unquantized conversion of ``checkpoint``, to ``target`` with
    the matrices of the lattice ``weights``, and read it back.

    Raises:
        StepFailed: the file's matrices are not the checkpoint's, or what was written is not the
            lattice.
    """
    reader = gguf.GGUFReader(source)
    placed = _placed(reader, Lattice(weights), checkpoint)
    writer = gguf.GGUFWriter(target, _setting(reader, "general.architecture"))
    _copy_settings(reader, writer)
    for tensor in reader.tensors:
        told = (tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type)
        if tensor.name in placed:
            shape = shape_of(placed[tensor.name].stored)
            kind = KINDS[placed[tensor.name].stored.bits]
            told = (shape, np.dtype(np.uint8), shape[0] * shape[1], kind)
        writer.add_tensor_info(tensor.name, *told)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, tensor in enumerate(reader.tensors):
        report(done, len(reader.tensors), "tensors")
        one = placed.get(tensor.name)
        writer.write_tensor_data(tensor.data if one is None else _blocks_of(one))
    writer.close()
    check(target, placed)


def _setting(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    if field is None:
        raise StepFailed(f"the conversion has no `{key}`")
    return str(field.contents())


def _copy_settings(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """All that the header says besides the architecture, which the writer begins with; most
    weights are Q4_0 now."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_Q4_0)
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, inner)


def _placed(reader: gguf.GGUFReader, stored: Lattice, checkpoint: Path) -> dict[str, Placed]:
    """Tensor → what it is to hold."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    originals = matrices.of(checkpoint)
    heads = [
        int(_setting(reader, f"{_setting(reader, 'general.architecture')}.attention.{key}"))
        for key in ("head_count", "head_count_kv")
    ]
    placed = {}
    for name in sorted(stored.names):
        tensor = tensors.get(tensor_of(name))
        if tensor is None:
            raise StepFailed(f"the conversion has no `{tensor_of(name)}`, the matrix `{name}`")
        rows = int(tensor.shape[1])
        original = originals[name]
        turned = {"q_proj": heads[0], "k_proj": heads[1]}.get(name.rpartition(".")[2])
        order = _order(tensor, original, rows, turned)
        if order is None:
            raise StepFailed(
                f"the rows of `{tensor.name}` are not those of the checkpoint's `{name}`"
            )
        placed[tensor.name] = Placed(stored=stored.packed_of(name, rows), order=order)
    return placed


def _order(
    tensor: gguf.ReaderTensor, original: matrices.Stored, rows: int, heads: int | None
) -> Order | None:
    """Which row of ``original`` each row of ``tensor`` is; None if they are others."""
    sample = np.unique(np.linspace(0, rows - 1, _SAMPLE).astype(np.intp))
    seen = gguf.dequantize(np.asarray(tensor.data[sample]), tensor.tensor_type)
    candidates = [np.arange(rows), *([permuted(rows, heads)] if heads else [])]
    for order in candidates:
        off = np.linalg.norm(original.rows(order[sample]) - seen)
        if off <= _NEAR * np.linalg.norm(seen):
            return order
    return None


def _blocks_of(one: Placed) -> npt.NDArray[np.uint8]:
    """The whole tensor, uint8 [rows, bytes of a row]."""
    raw = np.empty(shape_of(one.stored), np.uint8)
    for start, part in one.parts():
        raw[start : start + len(part.codes)] = blocks(part)
    return raw


def check(target: Path, placed: Mapping[str, Placed]) -> None:
    """The file ``target``, decoded by gguf, holds exactly what ``placed`` says.

    Raises:
        StepFailed: names a tensor that differs.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for done, (name, one) in enumerate(placed.items()):
        report(done, len(placed), "weights compared")
        tensor = tensors[name]
        for start, part in one.parts():
            raw = np.asarray(tensor.data[start : start + len(part.codes)])
            if tensor.tensor_type != KINDS[one.stored.bits] or not np.array_equal(
                gguf.dequantize(raw, tensor.tensor_type), part.dense()
            ):
                raise StepFailed(f"`{name}` does not hold the learned weights as they are")

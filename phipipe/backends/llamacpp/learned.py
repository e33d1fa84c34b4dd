"""Learned weights as a GGUF: the unquantized one with blocks of Q4_0 and Q8_0 in place of its
matrices, written as they are.

Converters reorder the rows of queries and keys for some architectures: where the file's rows are
not the checkpoint's, they must be the ones of llama.cpp's ``permute`` (conversion/llama.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from phipipe.algorithms.lattice import Lattice, Matrix, Packed
from phipipe.backends.llamacpp import fill
from phipipe.backends.llamacpp.blocks import Order, blocks, permuted
from phipipe.backends.llamacpp.fill import Filling
from phipipe.backends.llamacpp.header import Header
from phipipe.backends.llamacpp.names import tensor_of
from phipipe.backends.llamacpp.rows import Outline, Rows
from phipipe.backends.llamacpp.stored import Tensor
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

    def part(self, start: int, end: int) -> Matrix:
        """Rows ``start`` to ``end`` in the file's order."""
        chosen = self.order[start:end]
        codes, scales = self.stored.codes[chosen], self.stored.scales[chosen]
        return Packed(bits=self.stored.bits, codes=codes, scales=scales).matrix()

    def parts(self) -> Iterator[tuple[int, Matrix]]:
        """Some rows at a time, and the first one's number."""
        step = max(1, _PART // self.stored.shape[1])
        for start in range(0, len(self.order), step):
            yield start, self.part(start, start + step)


def write(outline: Outline, target: Path, weights: Path, checkpoint: Path) -> None:
    """Write ``outline``, the unquantized conversion of ``checkpoint``, to ``target`` with the
    matrices of the lattice ``weights``, and read it back.

    Raises:
        StepFailed: the conversion's matrices are not the checkpoint's, or what was written is not
            the lattice.
    """
    placed = _placed(outline, Lattice(weights), checkpoint)
    # most weights are Q4_0 now
    settings = outline.header.settings(int(gguf.LlamaFileType.MOSTLY_Q4_0))
    fill.write(target, settings, [_filling(one, placed) for one in outline.rows])
    check(target, placed)


def _filling(one: Rows, placed: Mapping[str, Placed]) -> Filling:
    """What a tensor of the file is made of: the lattice, or else the checkpoint's own rows."""
    new = placed.get(one.tensor.name)
    if new is None:
        return Filling(one.tensor, one.shape[0], one.raw, one.announce)
    tensor = Tensor(one.tensor.name, KINDS[new.stored.bits].name, one.tensor.shape)
    return Filling(tensor, one.shape[0], lambda start, end: blocks(new.part(start, end)))


def _placed(outline: Outline, stored: Lattice, checkpoint: Path) -> dict[str, Placed]:
    """Tensor → what it is to hold."""
    tensors = {one.tensor.name: one for one in outline.rows}
    originals = matrices.of(checkpoint)
    architecture = outline.header.text("general.architecture")
    heads = [
        int(outline.header.text(f"{architecture}.attention.{key}"))
        for key in ("head_count", "head_count_kv")
    ]
    placed = {}
    for name in sorted(stored.names):
        tensor = tensors.get(tensor_of(name))
        if tensor is None:
            raise StepFailed(f"the conversion has no `{tensor_of(name)}`, the matrix `{name}`")
        original = originals[name]
        turned = {"q_proj": heads[0], "k_proj": heads[1]}.get(name.rpartition(".")[2])
        order = _order(tensor, original, turned)
        if order is None:
            raise StepFailed(
                f"the rows of `{tensor.tensor.name}` are not those of the checkpoint's `{name}`"
            )
        rows = tensor.shape[0]
        placed[tensor.tensor.name] = Placed(stored=stored.packed_of(name, rows), order=order)
    return placed


def _order(tensor: Rows, original: matrices.Stored, heads: int | None) -> Order | None:
    """Which row of ``original`` each row of ``tensor`` is; None if they are others."""
    rows = tensor.shape[0]
    sample = np.unique(np.linspace(0, rows - 1, _SAMPLE).astype(np.intp))
    seen = tensor.picked(sample)
    candidates = [np.arange(rows), *([permuted(rows, heads)] if heads else [])]
    for order in candidates:
        off = np.linalg.norm(original.rows(order[sample]) - seen)
        if off <= _NEAR * np.linalg.norm(seen):
            return order
    return None


def check(target: Path, placed: Mapping[str, Placed]) -> None:
    """The file ``target``, decoded by gguf, holds exactly what ``placed`` says.

    Raises:
        StepFailed: names a tensor that differs.
    """
    written = Header(target)
    tensors = {tensor.name: tensor for tensor in written.tensors}
    for done, (name, one) in enumerate(placed.items()):
        report(done, len(placed), "weights compared")
        kind, raw = KINDS[one.stored.bits], written.data(tensors[name])
        for start, part in one.parts():
            rows = np.asarray(raw[start : start + len(part.codes)])
            if tensors[name].type != kind.name or not np.array_equal(
                gguf.dequantize(rows, kind), part.dense()
            ):
                raise StepFailed(f"`{name}` does not hold the learned weights as they are")

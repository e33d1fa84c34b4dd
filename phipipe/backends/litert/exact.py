"""What a quantized ``.tflite`` holds of each matrix, decoded; and proof that it is what was
learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice
from phipipe.backends.litert import stored
from phipipe.errors import StepFailed
from phipipe.progress import report

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a file holds of a matrix: ``codes`` int8 [rows, columns] and ``scales`` float32 [rows,
    groups], of which floats have none."""

    codes: npt.NDArray[np.int8] | Floats
    scales: Floats | None

    def dense(self) -> Floats:
        """The weight, float32 [rows, columns]."""
        wide = self.codes.astype(np.float32)
        if self.scales is None:
            return wide
        groups = wide.reshape(*self.scales.shape, -1) * self.scales[..., None]
        return np.asarray(groups, np.float32).reshape(wide.shape)


def decoded(path: Path) -> Iterator[tuple[stored.Weight, Held]]:
    """Every stored matrix, once for each operator that reads it."""
    model = stored.model_of(path)
    for graph in model.subgraphs:
        for tensor, reader in stored.matrices(model, graph):
            weight = stored.weight_of(graph, tensor, reader)
            raw = np.asarray(model.buffers[tensor.buffer].data).view(np.uint8)
            yield weight, _held(model, graph, tensor, weight, raw)


def _held(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    tensor: schema.TensorT,
    weight: stored.Weight,
    raw: npt.NDArray[np.uint8],
) -> Held:
    rows, bits = weight.shape[0], stored.BITS[weight.kind]
    if weight.group == 0:
        return Held(codes=raw.view(f"<f{bits // 8}").reshape(weight.shape), scales=None)
    sign = np.uint8(0x88 if bits == 4 else 0x80)  # two's complement, in both halves of a byte
    codes = lattice.unpacked(raw.reshape(rows, -1) ^ sign, bits)
    scales = tensor.quantization.scale
    if weight.group > 0:
        place = graph.tensors[tensor.quantization.details.scales].buffer
        scales = np.asarray(model.buffers[place].data).view(np.uint8).view("<f2")
    return Held(codes=codes, scales=np.asarray(scales, np.float32).reshape(rows, -1))


def check(path: Path, learned: Lattice, held: Mapping[str, str]) -> None:
    """The model ``path``, read from disk and decoded, holds exactly the codes and scales of
    ``learned``; ``held``: tensor → matrix.

    Raises:
        StepFailed: names the first matrix that holds others, or is not there.
    """
    seen = set()
    for done, (weight, found) in enumerate(decoded(path)):
        report(done, len(held), "weights compared")
        name = held[weight.name]
        if name not in learned:
            continue
        seen.add(name)
        expected = learned[name]
        scales = expected.scales.astype(np.float32)
        is_same = found.scales is not None and np.array_equal(found.scales, scales)
        if not (is_same and np.array_equal(found.codes, expected.codes)):
            raise StepFailed(f"`{name}` does not hold the learned weights as they are")
    if lost := learned.names - seen:
        raise StepFailed(f"the model does not hold the learned `{min(lost)}`")

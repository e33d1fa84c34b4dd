"""Nodes and constants of an ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from phipipe.backends.arrays import Array
from phipipe.backends.qnn.weights import DataFile, Weights

Read = Callable[[], npt.NDArray[np.float32]]
Attribute = int | float | Sequence[int]


class Nodes:
    """Nodes and constants under construction; names of values are those of the nodes that make
    them.

    Weights of linears go into ``data``.
    """

    def __init__(self, data: DataFile) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.data = data

    def node(self, kind: str, name: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Add a node with one output, which is called as the node."""
        node = helper.make_node(kind, list(inputs), [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, name: str, value: Array) -> str:
        """``value`` under ``name``, added when it is asked for first."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def linear(
        self, name: str, value: str, weight: str, read: Read, bias: Read | None = None
    ) -> str:
        """``value`` times the constant ``weight``; ``read`` gives it as the checkpoint stores it,
        [out, in]. ``bias`` [out] is added, if there is one."""
        self.constants[weight] = self.data.place(weight, lambda: read().T)
        if bias is None:
            return self.node("MatMul", name, [value, weight])
        product = self.node("MatMul", f"{name}_product", [value, weight])
        return self.node("Add", name, [product, self.constant(f"{name}_bias", bias())])

    def norm(self, name: str, value: str, weight: npt.NDArray[np.float32], epsilon: float) -> str:
        """RMSNorm over the last axis: value / sqrt(mean(value²) + ε) × weight."""
        square = self.node("Mul", f"{name}.square", [value, value])
        axis = self.constant("last_axis", np.array([-1], np.int64))
        mean = self.node("ReduceMean", f"{name}.mean", [square, axis])
        added = self.node(
            "Add", f"{name}.add", [mean, self.constant("epsilon", np.array(epsilon, np.float32))]
        )
        root = self.node("Sqrt", f"{name}.root", [added])
        scaled = self.node("Div", f"{name}.scaled", [value, root])
        return self.node("Mul", name, [scaled, self.constant(f"{name}.weight", weight)])

    def apply(self, name: str, value: str, linear: Linear) -> str:
        """``linear`` of ``value``."""
        return self.linear(name, value, linear.weight, linear.read, linear.bias)

    def reshape(self, name: str, value: str, *sizes: int) -> str:
        shape = self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        return self.node("Reshape", name, [value, shape])

    def transpose(self, name: str, value: str, *order: int) -> str:
        return self.node("Transpose", name, [value], perm=list(order))

    def split(self, name: str, value: str, *sizes: int) -> list[str]:
        """Parts of ``sizes`` along the last axis."""
        wanted = self.constant("split_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        parts = [f"{name}_{i}" for i in range(len(sizes))]
        self.nodes.append(helper.make_node("Split", [value, wanted], parts, name=name, axis=-1))
        return parts


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear of the checkpoint: its ``weight``'s name in graphs, and how its tensors are read."""

    weight: str
    read: Read
    bias: Read | None


def linears(
    weights: Weights, parts: Mapping[str, int], joined: str | None = None
) -> dict[str, Linear]:
    """The linears ``parts`` (name in the checkpoint without its last part → outputs), each stored
    alone, or all one after the other in ``joined``."""
    found, start = {}, 0
    for name, count in parts.items():
        alone = f"{name}.weight" in weights
        stored, first = (name, 0) if alone or joined is None else (joined, start)
        bias = f"{stored}.bias"
        found[name] = Linear(
            weight=f"{name}.weight",
            read=_rows(weights, f"{stored}.weight", first, first + count),
            bias=_rows(weights, bias, first, first + count) if bias in weights else None,
        )
        start += count
    return found


def _rows(weights: Weights, name: str, start: int, end: int) -> Read:
    return lambda: weights[name][start:end]

"""Nodes and constants of an ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from phipipe.backends.arrays import Array
from phipipe.backends.qnn.weights import DataFile

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

    def linear(self, name: str, value: str, weight: str, read: Read) -> str:
        """``value`` times the constant ``weight``; ``read`` gives it as the checkpoint stores it,
        [out, in]."""
        self.constants[weight] = self.data.place(weight, lambda: read().T)
        return self.node("MatMul", name, [value, weight])

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


def rows(weights: Mapping[str, npt.NDArray[np.float32]], name: str, start: int, end: int) -> Read:
    """Reads some rows of a joined linear."""
    return lambda: weights[name][start:end]

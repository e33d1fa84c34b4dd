"""Proof that a graph in fixed point, read from disk again, holds what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, TensorProto, numpy_helper

from phipipe.backends.qnn.calibration import Scale
from phipipe.errors import StepFailed

WIDTHS: Mapping[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
}


def verify(path: Path, bits: Mapping[str, int], caches: Mapping[str, Scale]) -> None:
    """Every linear of ``bits`` is stored at its width, with one scale for each output, all else in
    fixed point, the caches with ``caches``.

    Raises:
        StepFailed: names the first that is not.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for name, width in bits.items():
        _check_scales(name, constants)
        tensor = constants.get(f"{name}_quantized")
        stored = None if tensor is None else WIDTHS.get(tensor.data_type)
        if stored != width:
            kind = f"{stored} bits" if stored else "floating point"
            raise StepFailed(f"`{name}` is stored in {kind}, asked was {width}")
    _check_linears(graph)
    _check_caches(graph, constants, caches)


def _check_scales(name: str, constants: Mapping[str, TensorProto]) -> None:
    weight, step = (constants.get(f"{name}_{part}") for part in ("quantized", "step"))
    if weight is not None and (step is None or list(step.dims) != [weight.dims[1]]):
        raise StepFailed(f"`{name}` has no scale for each of its outputs")


def _check_linears(graph: GraphProto) -> None:
    makers = {name: node for node in graph.node for name in node.output}
    for node in (node for node in graph.node if node.op_type == "MatMul"):
        loose = [n for n in node.input if makers.get(n, node).op_type != "DequantizeLinear"]
        if loose:
            raise StepFailed(f"`{node.name}` reads `{loose[0]}` in floating point")


def _check_caches(
    graph: GraphProto, constants: Mapping[str, TensorProto], caches: Mapping[str, Scale]
) -> None:
    for name in (value.name for value in graph.input if value.name.startswith("past_")):
        (reader,) = (node for node in graph.node if name in node.input)
        scale, zero = (numpy_helper.to_array(constants[one]).item() for one in reader.input[1:])
        wanted = caches[name.removeprefix("past_")]
        if abs(scale - wanted[0]) > 1e-6 * wanted[0] or zero != wanted[1]:
            raise StepFailed(f"`{name}` has another range than what is given out")

"""Static graphs in fixed point, as Qualcomm's HTP computes: ranges from calibration, 16-bit
activations, 8-bit caches.

onnxruntime's own quantizer for QNN writes the graph (QuantizeLinear and DequantizeLinear around
every operator), but never sees a weight: linears read inputs until it is done, then constants,
which are rounded here one at a time. The caches cross the border as 8-bit integers, with one range
for what comes in and what goes out, in all graphs: the sliding cache of ONNX Runtime GenAI holds
bytes and does not know what they mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from phipipe.backends.qnn.calibration import Extent, Scale
from phipipe.backends.qnn.weights import DataFile, pairs, value_of

ROWS = 1024  # of a weight that are rounded at once
Override = Mapping[str, object]


def quantize(
    source: Path,
    target: Path,
    data: DataFile,
    seen: Mapping[str, Extent],
    bits: Mapping[str, int],
    caches: Mapping[str, Scale],
) -> None:
    """Write the graph ``source`` in fixed point to ``target``, its weights to ``data``.

    ``seen`` are the ranges of its values, ``bits`` maps constants of linears to 4 or 8; ``caches``
    are scales and zero points of the caches, empty for a graph without any.
    """
    model = onnx.load(str(source), load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in bits}
    readers = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    with tempfile.TemporaryDirectory(prefix="phipipe-qnn-") as folder:
        fixed = _fixed_point(model, weights, seen, caches, Path(folder))
    nodes = [
        _weight(fixed.graph, tensor, bits[name], data, source.parent)
        for name, tensor in sorted(weights.items())
    ]
    for node in fixed.graph.node:
        if readers.get(node.name) in bits:
            node.input[1] = f"{readers[node.name]}_float"
    fixed.graph.node.extend(nodes)
    if caches:
        _open_border(fixed.graph, caches)
    _prune(fixed.graph, {*weights})
    onnx.save(fixed, str(target))


def _fixed_point(
    model: ModelProto,
    weights: Mapping[str, TensorProto],
    seen: Mapping[str, Extent],
    caches: Mapping[str, Scale],
    folder: Path,
) -> ModelProto:
    """``model`` with every operator in fixed point, but ``weights`` as inputs; through files in
    ``folder``."""
    before, after, ranges = (folder / n for n in ("float.onnx", "fixed.onnx", "ranges.json"))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for name, tensor in weights.items():
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    onnx.save(model, str(before))
    extents = dict.fromkeys(weights, (-1.0, 1.0)) | dict(seen)
    arrays = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in extents.items()
    }
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, arrays), ranges)
    settings = get_qnn_qdq_config(
        str(before),
        None,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        init_overrides=_overrides(caches) or None,
        add_qtype_converts=True,
    )
    quantize_static(
        str(before),
        str(after),
        activation_type=settings.activation_type,
        weight_type=settings.weight_type,
        op_types_to_quantize=settings.op_types_to_quantize,
        extra_options=settings.extra_options,
        calibration_cache_path=ranges,
    )
    return onnx.load(str(after))


def _overrides(caches: Mapping[str, Scale]) -> dict[str, list[Override]]:
    """Caches that come in and go out are stored in 8 bits, by one scale for both."""
    overrides: dict[str, list[Override]] = {}
    for name, (scale, zero) in caches.items():
        stored = {
            "quant_type": QuantType.QUInt8,
            "scale": np.array(scale, np.float32),
            "zero_point": np.array(zero, np.uint8),
        }
        overrides |= {f"past_{name}": [stored], f"present_{name}": [stored]}
    return overrides


def _weight(
    graph: GraphProto, tensor: TensorProto, width: int, data: DataFile, folder: Path
) -> NodeProto:
    """The DequantizeLinear that makes ``…_float`` of the constant ``tensor``, a float one of a
    graph in ``folder``.

    Each output has a scale of its own.
    """
    value, name = value_of(tensor, folder), str(tensor.name)
    kind = TensorProto.INT8 if width == 8 else TensorProto.INT4
    scale = scale_of(value, width)
    graph.initializer.append(
        data.place(f"{name}_quantized", lambda: rounded(value, scale, width), kind)
    )
    zero = np.zeros(scale.shape, np.int8)
    packed = (pairs(zero) if width == 4 else zero).tobytes()
    inputs = [f"{name}_quantized", f"{name}_step", f"{name}_zero"]
    graph.initializer.append(numpy_helper.from_array(scale, inputs[1]))
    graph.initializer.append(helper.make_tensor(inputs[2], kind, scale.shape, packed, raw=True))
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}_float"], name=f"{name}_dequantize", axis=1
    )


def scale_of(value: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """What 1 stands for in each output of ``value`` [in, out] at ``width`` bits, [out]."""
    blocks = [np.abs(value[i : i + ROWS]) for i in range(0, len(value), ROWS)]
    largest = np.max([block.max(0) for block in blocks], 0)
    # -127 … 127, and -8 … 7 over twice the largest: finer steps for all, half a step lost for the
    # largest alone
    scale = np.maximum(largest / (127 if width == 8 else 7.5), np.finfo(np.float32).tiny).astype(
        np.float32
    )
    return np.asarray(scale)


def rounded(
    value: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], width: int
) -> npt.NDArray[np.int8]:
    """``value`` in steps of ``scale``, within ``width`` bits."""
    low, high = (-127, 127) if width == 8 else (-8, 7)
    steps = np.empty(value.shape, np.int8)
    for i in range(0, len(value), ROWS):
        steps[i : i + ROWS] = np.clip(np.rint(value[i : i + ROWS] / scale), low, high)
    return steps


def _prune(graph: GraphProto, inputs: set[str]) -> None:
    """Put nodes in the order in which they are needed; drop those, and constants and ``inputs``,
    that none needs."""
    order = _needed(graph)
    read = {name for node in order for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    kept = [value for value in graph.input if value.name not in inputs]
    for field, wanted in ((graph.node, order), (graph.initializer, constants), (graph.input, kept)):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in wanted]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]


def _needed(graph: GraphProto) -> list[NodeProto]:
    """The nodes that the graph's outputs need, each after those whose values it reads."""
    makers = {name: node for node in graph.node for name in node.output}
    order: list[NodeProto] = []
    done: set[str] = set()  # each node's first output
    waiting = [(value.name, False) for value in reversed(graph.output)]
    while waiting:
        name, ready = waiting.pop()
        if name not in makers or makers[name].output[0] in done:
            continue
        node = makers[name]
        if ready:
            done.add(node.output[0])
            order.append(node)
        else:
            waiting += [(name, True), *((read, False) for read in reversed(node.input))]
    return order


def _open_border(graph: GraphProto, caches: Mapping[str, Scale]) -> None:
    """Let the caches come and go as they are stored, without the conversion from and to floating
    point."""
    for value in graph.input:
        if value.name.startswith("past_"):
            _open_input(graph, value.name, caches[value.name.removeprefix("past_")])
            value.type.tensor_type.elem_type = TensorProto.UINT8
    for value in graph.output:
        if value.name.startswith("present_"):
            _open_output(graph, value.name, caches[value.name.removeprefix("present_")])
            value.type.tensor_type.elem_type = TensorProto.UINT8


def _open_input(graph: GraphProto, name: str, stored: Scale) -> None:
    """Readers of the cache ``name`` read it without its QuantizeLinear."""
    (first,) = (n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)
    _store(graph, first, stored)
    for node in graph.node:
        node.input[:] = [name if read == first.output[0] else read for read in node.input]
    graph.node.remove(first)


def _open_output(graph: GraphProto, name: str, stored: Scale) -> None:
    """The cache ``name`` is given out as it goes into its last DequantizeLinear."""
    (last,) = (node for node in graph.node if name in node.output)
    _store(graph, last, stored)
    # the attention of this very graph reads the wide form, too
    renamed = {name: f"{name}_float", last.input[0]: name}
    for node in graph.node:
        node.input[:] = [renamed.get(read, read) for read in node.input]
        node.output[:] = [renamed.get(written, written) for written in node.output]


def _store(graph: GraphProto, node: NodeProto, stored: Scale) -> None:
    """Give ``node``'s scale and zero point (and those of all that share them) the values
    ``stored``."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = (np.array(stored[0], np.float32), np.array(stored[1], np.uint8))
    for name, value in zip(node.input[1:], values, strict=True):
        constants[name].CopyFrom(numpy_helper.from_array(value, name))

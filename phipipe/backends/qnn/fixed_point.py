"""Static graphs in fixed point, as Qualcomm's HTP computes: ranges from calibration, 16-bit
activations, 8-bit caches.

onnxruntime's own quantizer for QNN writes the graph (QuantizeLinear and DequantizeLinear around
every operator), but never sees a weight: linears read inputs until it is done, then constants,
which are rounded here one at a time. The caches cross the border as 8-bit integers, with one range
for what comes in and what goes out, in all graphs: the sliding cache of ONNX Runtime GenAI holds
bytes and does not know what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.backends.qnn.calibration import Extent, Scale
    from phipipe.backends.qnn.weights import DataFile

ROWS = 1024  # of a weight that are rounded at once


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
    import tempfile

    import onnx

    model = onnx.load(str(source), load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in bits}
    readers = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    with tempfile.TemporaryDirectory(prefix="phipipe-qnn-") as folder:
        made = _fixed_point(model, weights, seen, caches, Path(folder))
    nodes = [
        _weight(made.graph, tensor, bits[name], data, source.parent)
        for name, tensor in sorted(weights.items())
    ]
    for node in made.graph.node:
        if readers.get(node.name) in bits:
            node.input[1] = f"{readers[node.name]}_float"
    made.graph.node.extend(nodes)
    if caches:
        _open_border(made, caches)
    _prune(made.graph, {*weights})
    onnx.save(made, str(target))


def _fixed_point(
    model: Any,
    weights: Mapping[str, Any],
    seen: Mapping[str, Extent],
    caches: Mapping[str, Scale],
    folder: Path,
) -> Any:
    """``model`` with every operator in fixed point, but ``weights`` as inputs; through files in
    ``folder``."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for name, tensor in weights.items():
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        )
    onnx.save(model, str(folder / "float.onnx"))
    extents = dict.fromkeys(weights, (-1.0, 1.0)) | dict(seen)
    ranges = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in extents.items()
    }
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ranges), folder / "ranges.json")
    overrides: dict[str, Any] = {}
    for name, (scale, zero) in caches.items():
        stored = {"quant_type": QuantType.QUInt8}
        stored |= {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
        overrides |= {f"past_{name}": [stored], f"present_{name}": [stored]}
    settings = get_qnn_qdq_config(
        str(folder / "float.onnx"),
        None,
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        init_overrides=overrides or None,
        add_qtype_converts=True,
    )
    quantize_static(
        str(folder / "float.onnx"),
        str(folder / "fixed.onnx"),
        activation_type=settings.activation_type,
        weight_type=settings.weight_type,
        op_types_to_quantize=settings.op_types_to_quantize,
        extra_options=settings.extra_options,
        calibration_cache_path=folder / "ranges.json",
    )
    return onnx.load(str(folder / "fixed.onnx"))


def _weight(graph: Any, tensor: Any, width: int, data: DataFile, folder: Path) -> Any:
    """The DequantizeLinear that makes ``…_float`` of the constant ``tensor``, a float one of a
    graph in ``folder``.

    8 bits have one scale for all, 4 bits one for each output.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from phipipe.backends.qnn.weights import pairs, value_of

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
    axis = {"axis": 1} if width == 4 else {}
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}_float"], name=f"{name}_dequantize", **axis
    )


def scale_of(value: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """What 1 stands for in ``value`` [in, out] at ``width`` bits: one number for 8, [out] for 4."""
    import numpy as np

    blocks = [np.abs(value[i : i + ROWS]) for i in range(0, len(value), ROWS)]
    largest = np.max([block.max(0) for block in blocks], 0)
    if width == 8:
        largest = largest.max()
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
    import numpy as np

    low, high = (-127, 127) if width == 8 else (-8, 7)
    made = np.empty(value.shape, np.int8)
    for i in range(0, len(value), ROWS):
        made[i : i + ROWS] = np.clip(np.rint(value[i : i + ROWS] / scale), low, high)
    return made


def _prune(graph: Any, inputs: set[str]) -> None:
    """Put nodes in the order in which they are needed; drop those, and constants and ``inputs``,
    that none needs."""
    makers = {name: node for node in graph.node for name in node.output}
    order, done = [], set()  # nodes, and each's first output
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
    read = {name for node in order for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    kept = [value for value in graph.input if value.name not in inputs]
    for field, wanted in ((graph.node, order), (graph.initializer, constants), (graph.input, kept)):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in wanted]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]


def _open_border(model: Any, caches: Mapping[str, Scale]) -> None:
    """Let the caches come and go as they are stored, without the conversion from and to floating
    point."""
    from onnx import TensorProto

    graph = model.graph
    for value in graph.input:
        if value.name.startswith("past_"):
            (first,) = (
                n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value.name
            )
            _store(graph, first, caches[value.name.removeprefix("past_")])
            for node in graph.node:
                node.input[:] = [
                    value.name if name == first.output[0] else name for name in node.input
                ]
            graph.node.remove(first)
            value.type.tensor_type.elem_type = TensorProto.UINT8
    for value in graph.output:
        if value.name.startswith("present_"):
            (last,) = (n for n in graph.node if value.name in n.output)
            _store(graph, last, caches[value.name.removeprefix("present_")])
            stored, wide = (
                last.input[0],
                f"{value.name}_float",
            )  # the attention of this very graph reads it, too
            renamed = {value.name: wide, stored: value.name}
            for node in graph.node:
                node.input[:] = [renamed.get(name, name) for name in node.input]
                node.output[:] = [renamed.get(name, name) for name in node.output]
            value.type.tensor_type.elem_type = TensorProto.UINT8


def _store(graph: Any, node: Any, stored: Scale) -> None:
    """Give ``node``'s scale and zero point (and those of all that share them) the values
    ``stored``."""
    import numpy as np
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for name, value in zip(
        node.input[1:],
        (np.array(stored[0], np.float32), np.array(stored[1], np.uint8)),
        strict=True,
    ):
        constants[name].CopyFrom(numpy_helper.from_array(value, name))


def verify(path: Path, bits: Mapping[str, int], caches: Mapping[str, Scale]) -> None:
    """Every linear of ``bits`` is stored at its width, all else in fixed point, the caches with
    ``caches``.

    Raises:
        StepFailed: names the first that is not.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(str(path), load_external_data=False)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    widths = {TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.UINT4: 4}
    for name, width in bits.items():
        found = (
            widths.get(constants[f"{name}_quantized"].data_type)
            if f"{name}_quantized" in constants
            else None
        )
        if found != width:
            raise StepFailed(
                f"`{name}` is stored in {f'{found} bits' if found else 'floating point'}, asked "
                f"was {width}"
            )
    linears = [node for node in model.graph.node if node.op_type == "MatMul"]
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in linears:
        if loose := [
            name for name in node.input if makers.get(name, node).op_type != "DequantizeLinear"
        ]:
            raise StepFailed(f"`{node.name}` reads `{loose[0]}` in floating point")
    for value in model.graph.input:
        if value.name.startswith("past_"):
            (reader,) = (n for n in model.graph.node if value.name in n.input)
            scale, zero = (
                numpy_helper.to_array(constants[name]).item() for name in reader.input[1:]
            )
            wanted = caches[value.name.removeprefix("past_")]
            if abs(scale - wanted[0]) > 1e-6 * wanted[0] or zero != wanted[1]:
                raise StepFailed(f"`{value.name}` has another range than what is given out")

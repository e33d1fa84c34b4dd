"""Static graphs in fixed point, as Qualcomm's HTP computes: ranges from calibration, 16-bit activations, 8-bit caches.

onnxruntime's own quantizer for QNN writes the graph (QuantizeLinear and DequantizeLinear around every operator). The
caches cross the border as 8-bit integers, with one range for what comes in and what goes out, in all graphs: the
sliding cache of ONNX Runtime GenAI holds bytes and does not know what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.static_session import Session

DECODED = 16  # tokens of each calibration window that go through the graph for single tokens
Range = tuple[float, int]  # scale, zero point


class _Reader:
    """onnxruntime's ``CalibrationDataReader`` over inputs in memory."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._feeds, None)


def traces(session: Session, windows: npt.NDArray[np.int32]) -> dict[str, list[dict[str, Any]]]:
    """Inputs of the decoder graphs by kind ("prompt", "token") while ``session`` reads ``windows`` [n, length].

    Each has the decoder's output besides, as ``hidden_states``, which is the LM head's input.

    Raises:
        StepFailed: the windows are too short to reach both graphs.
    """
    from phipipe.static_session import Caches

    step = session.facts["prompt_length"]
    usable = min(windows.shape[1], session.facts["context_length"])
    chunks = (usable - DECODED) // step
    if chunks < 1 or not len(windows):
        given = f"{len(windows)} windows of {windows.shape[1]} tokens"
        raise StepFailed(
            f"the calibration text is too short: {given}; prompts have {step}",
            hint=f"set `calibrate.window` to {step + DECODED} or more, and give a longer text",
        )
    found: dict[str, list[dict[str, Any]]] = {"prompt": [], "token": []}
    for window in windows.tolist():
        caches = Caches(session.facts)
        for i in range(chunks):
            made, feeds = session.trace(caches, window[i * step : (i + 1) * step])
            found["prompt"].append(feeds | {"hidden_states": made["hidden_states"]})
        for token in window[chunks * step : chunks * step + DECODED]:
            made, feeds = session.trace(caches, [token])
            found["token"].append(feeds | {"hidden_states": made["hidden_states"]})
    return found


def cache_ranges(found: Mapping[str, Sequence[Mapping[str, Any]]], layers: int) -> dict[str, Range]:
    """Scale and zero point of every layer's keys and values ("key_0" …), 8 bits over what calibration has seen."""
    ranges = {}
    for name in (f"{kind}_{i}" for i in range(layers) for kind in ("key", "value")):
        seen = [feeds[f"past_{name}"] for kind in found.values() for feeds in kind]
        low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        scale = max(high - low, 1e-6) / 255
        ranges[name] = (scale, max(0, min(255, round(-low / scale))))
    return ranges


def quantize(
    source: Path, target: Path, feeds: Sequence[Mapping[str, Any]], bits: Mapping[str, int], ranges: Mapping[str, Range]
) -> None:
    """Write the graph ``source`` in fixed point to ``target``.

    ``bits`` maps constants of linears to 4 or 8; ``ranges`` are those of the caches, empty for a graph without any.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize as to_qdq
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    overrides: dict[str, Any] = {}
    for name, width in bits.items():
        if width == 4:
            overrides[name] = [{"quant_type": QuantType.QInt4, "symmetric": True, "axis": 1}]
    for name, (scale, zero) in ranges.items():
        stored = {"quant_type": QuantType.QUInt8}
        stored |= {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}
        overrides |= {f"past_{name}": [stored], f"present_{name}": [stored]}
    names = {value.name for value in onnx.load(str(source), load_external_data=False).graph.input}
    wanted = [{name: value for name, value in feed.items() if name in names} for feed in feeds]
    settings = get_qnn_qdq_config(
        str(source),
        _Reader(wanted),
        activation_type=QuantType.QUInt16,
        weight_type=QuantType.QInt8,
        init_overrides=overrides or None,
        add_qtype_converts=True,
    )
    to_qdq(str(source), str(target), settings)
    if ranges:
        model = onnx.load(str(target))
        _open_border(model, ranges)
        onnx.save(model, str(target))


def _open_border(model: Any, ranges: Mapping[str, Range]) -> None:
    """Let the caches come and go as they are stored, without the conversion from and to floating point."""
    from onnx import TensorProto

    graph = model.graph
    for value in graph.input:
        if value.name.startswith("past_"):
            (first,) = (n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value.name)
            _store(graph, first, ranges[value.name.removeprefix("past_")])
            for node in graph.node:
                node.input[:] = [value.name if name == first.output[0] else name for name in node.input]
            graph.node.remove(first)
            value.type.tensor_type.elem_type = TensorProto.UINT8
    for value in graph.output:
        if value.name.startswith("present_"):
            (last,) = (n for n in graph.node if value.name in n.output)
            _store(graph, last, ranges[value.name.removeprefix("present_")])
            stored, wide = last.input[0], f"{value.name}_float"  # the attention of this very graph reads it, too
            renamed = {value.name: wide, stored: value.name}
            for node in graph.node:
                node.input[:] = [renamed.get(name, name) for name in node.input]
                node.output[:] = [renamed.get(name, name) for name in node.output]
            value.type.tensor_type.elem_type = TensorProto.UINT8


def _store(graph: Any, node: Any, stored: Range) -> None:
    """Give ``node``'s scale and zero point (and those of all that share them) the values ``stored``."""
    import numpy as np
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for name, value in zip(
        node.input[1:], (np.array(stored[0], np.float32), np.array(stored[1], np.uint8)), strict=True
    ):
        constants[name].CopyFrom(numpy_helper.from_array(value, name))


def verify(path: Path, bits: Mapping[str, int], ranges: Mapping[str, Range]) -> None:
    """Every linear of ``bits`` is stored at its width, all else in fixed point, the caches with ``ranges``.

    Raises:
        StepFailed: names the first that is not.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    widths = {TensorProto.INT4: 4, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.UINT4: 4}
    for name, width in bits.items():
        found = widths.get(constants[f"{name}_quantized"].data_type) if f"{name}_quantized" in constants else None
        if found != width:
            raise StepFailed(
                f"`{name}` is stored in {f'{found} bits' if found else 'floating point'}, asked was {width}"
            )
    linears = [node for node in model.graph.node if node.op_type == "MatMul"]
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in linears:
        if loose := [name for name in node.input if makers.get(name, node).op_type != "DequantizeLinear"]:
            raise StepFailed(f"`{node.name}` reads `{loose[0]}` in floating point")
    for value in model.graph.input:
        if value.name.startswith("past_"):
            (reader,) = (n for n in model.graph.node if value.name in n.input)
            scale, zero = (numpy_helper.to_array(constants[name]).item() for name in reader.input[1:])
            wanted = ranges[value.name.removeprefix("past_")]
            if abs(scale - wanted[0]) > 1e-6 * wanted[0] or zero != wanted[1]:
                raise StepFailed(f"`{value.name}` has another range than what is given out")

"""A ``.tflite`` of a lookup and a product, to be quantized and run: for the litert toolchain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

KINDS = schema.TensorType
LOOKUP, PRODUCT = 1, 2  # buffers of the two matrices


def write(path: Path, lookup: Any, product: Any) -> None:
    """The model ``ids`` → rows of ``lookup``, ``x`` → x · ``product``ᵀ; both float32."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description, model.buffers = 3, b"", [schema.BufferT()]
    graph.name, graph.tensors, graph.operators = b"main", [], []
    count = len(product)
    ids = _tensor(model, graph, b"ids", [len(lookup)], KINDS.INT32)
    x = _tensor(model, graph, b"x", [product.shape[1], product.shape[1]])
    table = _tensor(model, graph, b"table", lookup.shape, values=lookup)
    weight = _tensor(model, graph, b"weight", product.shape, values=product)
    seen = _tensor(model, graph, b"seen", lookup.shape)
    y = _tensor(model, graph, b"y", [product.shape[1], count])
    _operator(model, graph, schema.BuiltinOperator.EMBEDDING_LOOKUP, [ids, table], seen)
    _operator(model, graph, schema.BuiltinOperator.FULLY_CONNECTED, [x, weight, -1], y)
    graph.operators[1].builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    graph.operators[1].builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs, model.subgraphs = [ids, x], [seen, y], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _tensor(
    model: Any, graph: Any, name: bytes, shape: Any, kind: int = KINDS.FLOAT32, values: Any = None
) -> int:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), kind, 0
    if values is not None:
        buffer = schema.BufferT()
        buffer.data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, graph: Any, kind: int, inputs: list[int], output: int) -> None:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, kind, 1
    operator.opcodeIndex, operator.inputs, operator.outputs = len(graph.operators), inputs, [output]
    model.operatorCodes = [*(model.operatorCodes or []), code]
    graph.operators.append(operator)


def computed(path: Path) -> tuple[Any, Any]:
    """All rows that the lookup gives, and the product's matrix, which inputs of 0 and 1 show; by
    the interpreter with XNNPACK."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    inputs = {one["name"]: one for one in interpreter.get_input_details()}
    rows, columns = inputs["ids"]["shape"][0], inputs["x"]["shape"][1]
    interpreter.set_tensor(inputs["ids"]["index"], np.arange(rows, dtype=np.int32))
    interpreter.set_tensor(inputs["x"]["index"], np.eye(columns, dtype=np.float32))
    interpreter.invoke()
    outputs = {one["name"]: one["index"] for one in interpreter.get_output_details()}
    return interpreter.get_tensor(outputs["seen"]), interpreter.get_tensor(outputs["y"]).T

"""The matrices of a ``.tflite``, read back and held against what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from phipipe.backends.widths import FLOAT_BITS
from phipipe.errors import StepFailed
from phipipe.steps import Json

BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT8": 8, "INT4": 4}
LOOKUP = "EMBEDDING_LOOKUP"
# TensorFlow Lite's numbers → names.
_KINDS = {number: name for name, number in vars(schema.TensorType).items() if type(number) is int}
_OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if type(number) is int
}


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A stored matrix of one signature. ``group`` is 0 for floats, -1 for one scale a row."""

    name: str
    buffer: int
    shape: tuple[int, ...]
    kind: str  # TensorFlow Lite's tensor type
    group: int
    symmetric: bool
    dequantized: bool  # to floats, by an operator of its own, before it is used
    reader: str  # the operator that reads it


def read(path: Path) -> list[Weight]:
    """Every stored matrix (two lengths above 1) that an operator of the file's graphs reads.

    Raises:
        StepFailed: the file holds none.
    """
    model = model_of(path)
    weights = [
        weight_of(graph, tensor, reader)
        for graph in model.subgraphs
        for tensor, reader in matrices(model, graph)
    ]
    if not weights:
        raise StepFailed(f"`{path.name}` holds no weights")
    return weights


def model_of(path: Path) -> schema.ModelT:
    """The model in the file; its buffers are views of it."""
    return tfl_flatbuffer_utils.read_model(str(path))


def matrices(model: schema.ModelT, graph: schema.SubGraphT) -> Iterator[tuple[schema.TensorT, str]]:
    """Every stored matrix that an operator of ``graph`` reads, and the operator's name."""
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        reader = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for tensor in (graph.tensors[index] for index in operator.inputs if index >= 0):
            if _is_matrix(tensor) and _is_stored(model.buffers[tensor.buffer]):
                yield tensor, reader


def _is_matrix(tensor: schema.TensorT) -> bool:
    return tensor.shape is not None and sum(length > 1 for length in tensor.shape) >= 2


def _is_stored(buffer: schema.BufferT) -> bool:
    """Whether the buffer has content; above 2 GB it lies behind the flatbuffer, at an offset."""
    return bool(buffer.offset and buffer.offset > 1) or (
        buffer.data is not None and len(buffer.data) > 0
    )


def weight_of(graph: schema.SubGraphT, tensor: schema.TensorT, reader: str) -> Weight:
    """How ``tensor`` of ``graph``, which the operator ``reader`` reads, is stored."""
    quantization, group, zeros = tensor.quantization, 0, None
    if quantization is not None and type(quantization.details).__name__ == "BlockwiseQuantizationT":
        group = int(quantization.details.blockSize)
        zeros = [] if quantization.details.zeroPoints < 0 else [1]
    elif quantization is not None and quantization.scale is not None and len(quantization.scale):
        scales, rows = len(quantization.scale), tensor.shape[quantization.quantizedDimension or 0]
        group = -1 if scales == rows else -2  # -2: something that we never ask for
        zeros = quantization.zeroPoint
    return Weight(
        name=f"{graph.name.decode()}:{tensor.name.decode()}",
        buffer=tensor.buffer,
        shape=tuple(int(length) for length in tensor.shape),
        kind=_KINDS[tensor.type],
        group=group,
        symmetric=zeros is None or not any(zeros),
        dequantized=reader == "DEQUANTIZE",
        reader=reader,
    )


def verify(
    before: Sequence[Weight],
    after: Sequence[Weight],
    params: Mapping[str, Json],
    names: Mapping[int, str] | None = None,
) -> None:
    """``after`` holds the matrices of ``before``, stored as ``params`` (``bits``, ``group_size``,
    ``scheme``) ask, or as ``params["widths"]`` do; ``names``: the matrices in the buffers of
    ``before``.

    Raises:
        StepFailed: names the first that is not as it should be.
    """
    shapes = [{weight.name: weight.shape for weight in weights} for weights in (before, after)]
    if shapes[0] != shapes[1]:
        changed = [
            name
            for name in sorted(shapes[0] | shapes[1])
            if shapes[0].get(name) != shapes[1].get(name)
        ]
        raise StepFailed(f"the quantizer lost or changed `{changed[0]}`")
    held = {weight.name: (names or {}).get(weight.buffer, "") for weight in before}
    widths: Mapping[str, Sequence[int]] = params.get("widths", {})
    if lost := widths.keys() - held.values():
        raise StepFailed(f"the converted model has no matrix that holds `{min(lost)}` alone")
    for weight in after:
        bits, group = widths.get(held[weight.name], (params["bits"], params["group_size"]))
        problem = _difference(weight, bits, group, params["scheme"])
        if problem:
            raise StepFailed(f"`{held[weight.name] or weight.name}` {problem}")


def _difference(weight: Weight, bits: int, group: int, scheme: str) -> str | None:
    """What is not as asked; None if nothing is."""
    group = 0 if bits == FLOAT_BITS else group
    if (BITS.get(weight.kind), weight.group) != (bits, group):
        asked = f"{bits} bits and {_words(group)}"
        stored = f"{weight.kind} with {_words(weight.group)}"
        return f"was asked for in {asked}, and is stored as {stored}"
    if not weight.symmetric:
        return "is stored with zero points; LiteRT's weights are symmetric"
    if weight.dequantized != (scheme == "weight_only" or bits == FLOAT_BITS):
        used = f"`{scheme}` weights are used"
        return f"is read by {weight.reader}, which is not how {used}"
    return None


def _words(group: int) -> str:
    return {0: "no scale", -1: "one scale a row", -2: "scales of another kind"}.get(
        group, f"groups of {group}"
    )


def verify_floats(weights: Sequence[Weight]) -> None:
    """Every matrix is in 32-bit floating point.

    Raises:
        StepFailed: names the first that is not.
    """
    for weight in weights:
        if weight.kind != "FLOAT32":
            raise StepFailed(f"the conversion stored `{weight.name}` as {weight.kind}, not FLOAT32")

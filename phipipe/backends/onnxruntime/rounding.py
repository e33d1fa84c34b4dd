"""Rounding the weights of an ONNX decoder graph to few bits, one slice of one weight at a time.

Every slice goes through onnxruntime's own ``MatMulNBitsQuantizer``. It rounds a weight [K, N] in
blocks along K, column by column, so slicing along N changes no byte, and memory does not grow with
the model.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import BinaryIO

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from phipipe.algorithms.olive_packed import Packed
from phipipe.backends.onnxruntime.graph import QUANTIZED, load, save
from phipipe.backends.onnxruntime.layout import DATA, LOOKUP
from phipipe.backends.onnxruntime.links import Floats, Matrix, Weights
from phipipe.backends.onnxruntime.lookups import own, share
from phipipe.backends.onnxruntime.schemes import Scheme
from phipipe.errors import StepFailed
from phipipe.progress import report

_ALIGNMENT = 64  # bytes; a cache line, and what the widest vector load of a CPU wants
_FAR = 0.25  # share of a weight's squares that rounding moves it by, at most
SLICE = 2**20  # elements rounded at a time: 4 MiB in fp32, about 200 MiB at the peak of k_quant


def write_rounded(
    source: Path,
    out: Path,
    schemes: Mapping[str, Scheme],
    embedding: Scheme | None,
    rounded: Mapping[str, Callable[[], Packed]] = MappingProxyType({}),
    checkpoint: Path | None = None,
    *,
    near: bool = True,
) -> None:
    """Write the graph of ``source`` to ``out`` with the linears named in ``schemes`` quantized.

    Those named in ``rounded`` too get the integers and scales from there, all others are rounded
    here. ``checkpoint`` has the weights that ``source`` links to. ``near``: what is ready-made must
    lie near the weight that it replaces. An embedding tied to a quantized LM head reads the head's
    weight if ``embedding`` is set; an untied one is quantized by it. Everything else is copied.
    """
    model, stored = load(source), Weights(source, checkpoint)
    nodes = model.graph.node
    weights = {node.input[1]: (node, schemes[node.name]) for node in nodes if node.name in schemes}
    lookup = next(node for node in nodes if node.name == LOOKUP)
    transpose = next((node for node in nodes if node.output[0] == lookup.input[0]), None)
    if embedding and transpose is None:
        weights[lookup.input[0]] = (lookup, embedding)
    unshared = transpose.input[0] if transpose is not None and embedding is None else None
    written: list[TensorProto] = []
    with (out / DATA).open("wb") as stream:
        for done, tensor in enumerate(model.graph.initializer):
            report(done, len(model.graph.initializer), "weights")
            if tensor.name in weights:
                weight = stored.matrix(tensor)
                pieces = _replacements(weight, tensor.name, *weights[tensor.name], rounded, near)
                written += [_append(stream, piece, [piece.raw_data]) for piece in pieces]
            if tensor.name not in weights or tensor.name == unshared:
                written.append(_append(stream, tensor, stored.chunks(tensor, SLICE)))
    if embedding and transpose is not None:
        share(model, transpose, lookup, weights[transpose.input[0]][0])
    del model.graph.initializer[:]
    model.graph.initializer.extend(written)
    save(model, out)


def _replacements(
    weight: Matrix,
    name: str,
    node: NodeProto,
    scheme: Scheme,
    rounded: Mapping[str, Callable[[], Packed]],
    near: bool,
) -> list[TensorProto]:
    """The tensors that replace ``weight``, from ``rounded`` if its node is named there; ``node``
    becomes the one that reads them."""
    packed = rounded[node.name]() if node.name in rounded else None
    if packed and near:
        _check_same(name, weight, packed)
    if node.op_type != "MatMul" and (packed or scheme.bits != 4):
        return own(name, node, packed or rounded_rows(weight, name, scheme), weight.dtype.name)
    if packed:
        return _filled(name, weight, node, scheme, packed)
    return _quantized(name, weight, node, scheme)


def rounded_rows(weight: Matrix, name: str, scheme: Scheme) -> Packed:
    """The rows of ``weight``, rounded as if they were the columns of a product. (Of an embedding,
    onnxruntime's quantizer would round them to 4 bits alone.)"""
    product = helper.make_node("MatMul", ["x", name], ["y"], name)
    rows, columns = weight.shape
    step = max(1, SLICE // columns)
    parts: list[list[bytes]] = []
    for start in range(0, rows, step):
        part = np.ascontiguousarray(weight.part(start, start + step, 0).T, weight.dtype)
        reader, tensors, raw = _run(product, name, part, scheme)
        data = dict(zip((tensor.name for tensor in tensors), raw, strict=True))
        parts.append([data[read] for read in reader.input[1:]])  # each algorithm has its own order
    codes, scales, *zeros = (b"".join(part) for part in zip(*parts, strict=True))
    shape = (rows, -1)
    return Packed(
        bits=scheme.bits,
        group_size=scheme.block_size,
        weight=np.frombuffer(codes, np.uint8).reshape(shape),
        scales=np.frombuffer(scales, weight.dtype).reshape(shape),
        zeros=np.frombuffer(zeros[0], np.uint8).reshape(shape) if zeros else None,
    )


def _quantized(name: str, weight: Matrix, node: NodeProto, scheme: Scheme) -> list[TensorProto]:
    """The tensors that replace ``weight``; ``node`` becomes the one that reads them."""
    axis = 1 if node.op_type == "MatMul" else 0  # the axis whose slices do not know each other
    # even: 4-bit values are packed in pairs
    step = max(2, SLICE // weight.shape[1 - axis] // 2 * 2)
    reader = NodeProto()
    tensors: list[TensorProto] = []
    parts: list[list[bytes]] = []
    for start in range(0, weight.shape[axis], step):
        reader, tensors, raw = _run(node, name, weight.part(start, start + step, axis), scheme)
        parts.append(raw)
    _replace(node, reader, weight.shape[1])
    for position, tensor in enumerate(tensors):
        tensor.dims[0] = weight.shape[axis]
        tensor.raw_data = b"".join(raw[position] for raw in parts)
    return tensors


def _replace(node: NodeProto, reader: NodeProto, columns: int) -> None:
    """``node`` becomes ``reader``, which was made for a slice of the weight's ``columns``."""
    for attribute in reader.attribute:
        if attribute.name == "N":
            attribute.i = columns
    node.CopyFrom(reader)


def _filled(
    name: str, weight: Matrix, node: NodeProto, scheme: Scheme, packed: Packed
) -> list[TensorProto]:
    """Like ``_quantized``, but integers and scales are those of ``packed``; scales take the graph's
    width.

    Raises:
        StepFailed: they are of another shape.
    """
    # for names, types and attributes
    reader, tensors, _ = _run(node, name, weight.part(0, 2, 1), scheme)
    values = (packed.weight, packed.scales, packed.zeros)
    for tensor, value in zip(tensors, values, strict=False):
        tensor.dims[0] = weight.shape[1]
        if value is None or math.prod(tensor.dims) != value.size:
            raise StepFailed(
                f"the rounded weight for `{node.name}` does not have the shape {list(tensor.dims)}"
            )
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)  # uint8, or the graph's width
        tensor.raw_data = value.astype(kind).tobytes()
    _replace(node, reader, weight.shape[1])
    return tensors


def _check_same(name: str, weight: Matrix, packed: Packed) -> None:
    """Rounding moves a weight by a tenth of its size or so; another matrix of the same shape is
    farther off."""
    off = size = 0.0
    step = max(1, SLICE // weight.shape[0])
    for start in range(0, weight.shape[1], step):
        part = weight.part(start, start + step, 1).T.astype(np.float32)
        off += float(np.square(packed.rows(start, start + step).dense() - part).sum())
        size += float(np.square(part).sum())
    if off > _FAR * size:
        raise StepFailed(f"the rounded weight for `{name}` is that of another matrix")


def _run(
    node: NodeProto, name: str, part: Floats, scheme: Scheme
) -> tuple[NodeProto, list[TensorProto], list[bytes]]:
    """Put one slice of weight ``name`` through onnxruntime's quantizer, as a graph of one node.

    Returns the new node, its tensors without their data, and the data. All are copies: a protobuf
    message keeps the memory of everything that was ever in it, here the fp32 slice.

    Raises:
        StepFailed: it cannot be rounded so.
    """
    _check_pairs(name, part, scheme)
    with quantizer_module() as ort:
        quantizer = ort.MatMulNBitsQuantizer(
            _one_node(node, name, part),
            bits=scheme.bits,
            block_size=scheme.block_size,
            is_symmetric=scheme.symmetric,
            accuracy_level=scheme.accuracy_level,
            op_types_to_quantize=(node.op_type,),
            algo_config=_algorithm(ort, node, scheme),
        )
        quantizer.process()
    graph = quantizer.model.model.graph
    if len(graph.node) != 1 or graph.node[0].op_type not in QUANTIZED:
        raise StepFailed(f"onnxruntime did not quantize `{node.name}`")
    reader = NodeProto()
    reader.CopyFrom(graph.node[0])
    tensors = [
        TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) for t in graph.initializer
    ]
    return reader, tensors, [t.raw_data for t in graph.initializer]


def _check_pairs(name: str, part: Floats, scheme: Scheme) -> None:
    """onnxruntime packs zero points of 4 bits two to a byte, and these algorithms of its lose count
    where one is left over."""
    blocks = -(-len(part) // scheme.block_size)
    is_packed = scheme.algorithm in ("rtn", "k_quant") and scheme.bits == 4
    if is_packed and not scheme.symmetric and blocks % 2:
        raise StepFailed(
            f"{scheme.algorithm} cannot round `{name}`: blocks of {scheme.block_size} are odd in "
            f"number, {blocks} in {len(part)} weights",
            hint="choose a smaller `quantize.block_size`, or `algorithm: default`",
        )


def _one_node(node: NodeProto, name: str, weight: Floats) -> ModelProto:
    """A model of ``node`` alone; built in place, since onnx's helpers copy the weight at every
    level."""
    model = ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 21)])
    model.graph.name = "slice"
    model.graph.node.add().CopyFrom(node)
    model.graph.input.extend(ValueInfoProto(name=read) for read in node.input if read != name)
    model.graph.output.extend(ValueInfoProto(name=written) for written in node.output)
    kind = TensorProto.FLOAT if weight.itemsize == 4 else TensorProto.FLOAT16
    tensor = model.graph.initializer.add(name=name, data_type=kind, dims=weight.shape)
    tensor.raw_data = weight.tobytes()
    return model


def _algorithm(ort: ModuleType, node: NodeProto, scheme: Scheme) -> object:
    """None is "default"; the other two take their bits per node, and know nothing of embeddings."""
    if scheme.algorithm in {"default", "gptq"} or node.op_type != "MatMul":
        return None
    kind = {"rtn": ort.RTNWeightOnlyQuantConfig, "k_quant": ort.KQuantWeightOnlyQuantConfig}[
        scheme.algorithm
    ]
    return kind(customized_weight_config={node.name: {"bits": scheme.bits}})


@contextlib.contextmanager
def quantizer_module() -> Iterator[ModuleType]:
    """onnxruntime's module, kept from printing progress bars and from reconfiguring the root
    logger."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with contextlib.redirect_stdout(io.StringIO()):
        from onnxruntime.quantization import matmul_nbits_quantizer

        root.handlers[:] = handlers
        root.setLevel(level)
        matmul_nbits_quantizer.logger.setLevel(logging.WARNING)
        yield matmul_nbits_quantizer


def _append(stream: BinaryIO, tensor: TensorProto, chunks: Iterable[bytes]) -> TensorProto:
    """Write ``chunks``, the bytes of ``tensor``, to ``stream``; returns the initializer that points
    there."""
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    start = stream.tell()
    for chunk in chunks:
        stream.write(chunk)
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", start), ("length", stream.tell() - start)):
        stub.external_data.add(key=key, value=str(value))
    return stub

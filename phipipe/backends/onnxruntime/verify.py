"""Proof that a rounded graph, read from disk again, holds what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import NodeProto, TensorProto

from phipipe.backends.onnxruntime.graph import QUANTIZED, attributes, check_files, load
from phipipe.backends.onnxruntime.schemes import Linear, Scheme
from phipipe.errors import StepFailed


def verify(
    folder: Path, wanted: Sequence[Linear], schemes: Mapping[str, Scheme], embedding: Scheme | None
) -> None:
    """Prove that ``folder`` holds what was asked: each of ``wanted`` as ``schemes`` says, or else
    in fp32.

    Raises:
        StepFailed: names the node that differs, and how.
    """
    model = load(folder)
    check_files(folder, model)
    nodes = {node.name: node for node in model.graph.node}
    tensors = {t.name: t for t in model.graph.initializer}
    expected = {_check_linear(nodes, tensors, one, schemes.get(one.name)) for one in wanted}
    rest = [node for node in model.graph.node if node.name not in expected]
    left = [node.name for node in rest if node.op_type == "MatMul" and node.input[1] in tensors]
    if left:
        raise StepFailed(f"`{left[0]}` was left in fp32 and is not excluded")
    _check_embedding([node for node in rest if node.op_type in QUANTIZED], embedding)


def _check_linear(
    nodes: Mapping[str, NodeProto],
    tensors: Mapping[str, TensorProto],
    linear: Linear,
    scheme: Scheme | None,
) -> str:
    """The name of the node that computes ``linear`` as ``scheme`` says."""
    name = f"{linear.name}_Q{scheme.bits}" if scheme else linear.name
    if name not in nodes:
        width = f"at {scheme.bits} bits" if scheme else "in fp32"
        raise StepFailed(f"`{linear.name}` is not in the graph {width}")
    problem = _difference(nodes[name], tensors, linear, scheme)
    if problem:
        raise StepFailed(
            f"`{name}` {problem}",
            hint="this is a bug in phipipe or in this version of onnxruntime",
        )
    return name


def _difference(
    node: NodeProto, tensors: Mapping[str, TensorProto], linear: Linear, scheme: Scheme | None
) -> str | None:
    """What is wrong with ``node``, which should compute ``linear`` as ``scheme`` says; None if
    nothing is."""
    if scheme is None:
        shape = (linear.k, linear.n)
        kept = node.op_type == "MatMul" and tuple(tensors[node.input[1]].dims) == shape
        return None if kept else f"is `{node.op_type}`, but was excluded from quantization"
    asked = {
        "bits": scheme.bits,
        "block_size": scheme.block_size,
        "accuracy_level": scheme.accuracy_level,
        "K": linear.k,
        "N": linear.n,
    }
    values = {"accuracy_level": 0} | attributes(node)
    for name, value in asked.items():
        if values.get(name) != value:
            return f"has {name} {values.get(name)}, asked was {value}"
    stored = [name for name in node.input[1:] if name]
    if len(stored) != (2 if scheme.symmetric else 3) or node.op_type != "MatMulNBits":
        none = "" if len(stored) > 2 else "no "
        return f"has {none}zero points, asked was symmetric: {scheme.symmetric}"
    return _wrong_tensor(stored, tensors, linear, scheme)


def _wrong_tensor(
    stored: Sequence[str], tensors: Mapping[str, TensorProto], linear: Linear, scheme: Scheme
) -> str | None:
    """What is wrong with the packed weight, the scales or the zero points: all are named after
    ``linear.weight``."""
    blocks = -(-linear.k // scheme.block_size)
    packed = (linear.n, blocks, scheme.block_size * scheme.bits // 8)
    for name, shape in zip(
        stored,
        (packed, (linear.n, blocks), (linear.n, -(-blocks * scheme.bits // 8))),
        strict=False,
    ):
        if not name.startswith(f"{linear.weight}_"):
            return f"reads `{name}`, another node's weight"
        if name not in tensors or tuple(tensors[name].dims) != shape:
            return f"reads `{name}`, which does not have the shape {list(shape)}"
    return None


def _check_embedding(nodes: Sequence[NodeProto], embedding: Scheme | None) -> None:
    """Exactly the quantized lookup that was asked for is there, and nothing else is quantized."""
    for node in nodes:
        values = {"bits": 4} | attributes(node)
        symmetric = not any(node.input[3:])
        stored = (values.get("bits"), values.get("block_size"), symmetric)
        asked = embedding and (embedding.bits, embedding.block_size, embedding.symmetric)
        if node.op_type != "GatherBlockQuantized" or stored != asked:
            raise StepFailed(f"`{node.name}` ({node.op_type}) was not asked for, or not like this")
    if len(nodes) != (embedding is not None):
        raise StepFailed("the token embedding is not quantized, though asked for")

"""ONNX decoder graphs on disk: what they hold, making their weights smaller, and proving that it
was done.

A model is a folder with ``model.onnx`` (nodes) and ``model.onnx.data`` (every initializer,
external, in one file). Quantization streams: one slice of one weight is in memory at a time,
whatever the model's size, and each slice goes through onnxruntime's own ``MatMulNBitsQuantizer``. A
weight [K, N] is quantized in blocks along K, column by column, so slicing along N changes no byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phipipe.errors import StepFailed

MODEL = "model.onnx"
DATA = "model.onnx.data"
QUANTIZED = frozenset(
    {"MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "QMoE", "MatMulInteger"}
)
FLOATS: Mapping[int, str] = {1: "fp32", 10: "fp16"}  # by ONNX data type
# Tables that are computed from the config, not learned: no part of the weights' size.
TABLES = ("cos_cache", "sin_cache")

_BYTES = {
    1: 4,
    2: 1,
    3: 1,
    6: 4,
    7: 8,
    10: 2,
    16: 2,
    21: 0.5,
    22: 0.5,
}  # per element of an ONNX data type


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one weight is stored. ``symmetric`` ⇔ no zero points. Algorithms are onnxruntime's."""

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product with a constant matrix ``weight`` [k, n] of ``dtype`` "fp32" or "fp16"."""

    name: str
    weight: str
    k: int
    n: int
    dtype: str = "fp32"


def load(folder: Path) -> Any:
    """The ``onnx.ModelProto`` of ``folder`` without its weights.

    Raises:
        StepFailed: there is none, or it cannot be read.
    """
    import onnx

    try:
        return onnx.load(str(folder / MODEL), load_external_data=False)
    except (OSError, ValueError) as error:
        raise StepFailed(f"`{folder.name}/{MODEL}` cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001 (protobuf's DecodeError is not importable by a stable name)
        raise StepFailed(f"`{folder.name}/{MODEL}` is damaged: {error}") from None


def save(model: Any, folder: Path) -> None:
    """Write ``model`` (weights stay where they are), the same bytes for the same content."""
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def linears(model: Any) -> list[Linear]:
    """The graph's products with a constant floating-point matrix, in order."""
    shapes = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        kind, shape = shapes.get(node.input[1], (0, ())) if node.op_type == "MatMul" else (0, ())
        if kind in FLOATS and len(shape) == 2:
            linear = Linear(
                name=node.name, weight=node.input[1], k=shape[0], n=shape[1], dtype=FLOATS[kind]
            )
            found.append(linear)
    return found


def is_tied(model: Any) -> bool:
    """Whether the token embedding reads the LM head's matrix (through a transpose)."""
    return any(
        n.op_type == "Transpose" and n.name.startswith("/model/embed_tokens/")
        for n in model.graph.node
    )


def check_files(folder: Path, model: Any) -> None:
    """Every initializer lies whole inside ``model.onnx.data``, a plain file that nothing else links
    to.

    Raises:
        StepFailed: names what is missing.
    """
    for name in (MODEL, DATA):
        path = folder / name
        if not path.is_file() or path.is_symlink() or path.stat().st_nlink != 1:
            raise StepFailed(f"`{name}` is missing or linked; onnxruntime refuses linked weights")
    size = (folder / DATA).stat().st_size
    for tensor in model.graph.initializer:
        location, offset, length = place(tensor)
        expected = math.ceil(math.prod(tensor.dims) * _BYTES.get(tensor.data_type, 0))
        if location != DATA or length != expected or offset + length > size:
            raise StepFailed(f"`{MODEL}` is incomplete: weight `{tensor.name}` is not in `{DATA}`")


def place(tensor: Any) -> tuple[str, int, int]:
    """(file, offset, length) of an external initializer; file is "" if it is not external."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries.get("location", ""), int(entries.get("offset", 0)), int(entries.get("length", 0))


def attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


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
    expected = set()
    for linear in wanted:
        scheme = schemes.get(linear.name)
        name = f"{linear.name}_Q{scheme.bits}" if scheme else linear.name
        expected.add(name)
        if name not in nodes:
            raise StepFailed(
                f"`{linear.name}` is not in the graph "
                f"{f'at {scheme.bits} bits' if scheme else 'in fp32'}"
            )
        problem = _difference(nodes[name], tensors, linear, scheme)
        if problem:
            raise StepFailed(
                f"`{name}` {problem}",
                hint="this is a bug in phipipe or in this version of onnxruntime",
            )
    rest = [node for node in model.graph.node if node.name not in expected]
    left = [node.name for node in rest if node.op_type == "MatMul" and node.input[1] in tensors]
    if left:
        raise StepFailed(f"`{left[0]}` was left in fp32 and is not excluded")
    _check_embedding([node for node in rest if node.op_type in QUANTIZED], embedding)


def _difference(
    node: Any, tensors: Mapping[str, Any], linear: Linear, scheme: Scheme | None
) -> str | None:
    """What is wrong with ``node``, which should compute ``linear`` as ``scheme`` says; None if
    nothing is."""
    if scheme is None:
        kept = node.op_type == "MatMul" and tuple(tensors[node.input[1]].dims) == (
            linear.k,
            linear.n,
        )
        return None if kept else f"is `{node.op_type}`, but was excluded from quantization"
    asked = {
        "bits": scheme.bits,
        "block_size": scheme.block_size,
        "accuracy_level": scheme.accuracy_level,
        "K": linear.k,
        "N": linear.n,
    }
    found = {"accuracy_level": 0} | attributes(node)
    for name, value in asked.items():
        if found.get(name) != value:
            return f"has {name} {found.get(name)}, asked was {value}"
    stored = [name for name in node.input[1:] if name]
    if len(stored) != (2 if scheme.symmetric else 3) or node.op_type != "MatMulNBits":
        return (
            f"has {'' if len(stored) > 2 else 'no '}zero points, asked was symmetric: "
            f"{scheme.symmetric}"
        )
    return _wrong_tensor(stored, tensors, linear, scheme)


def _wrong_tensor(
    stored: Sequence[str], tensors: Mapping[str, Any], linear: Linear, scheme: Scheme
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


def _check_embedding(nodes: Sequence[Any], embedding: Scheme | None) -> None:
    """Exactly the quantized lookup that was asked for is there, and nothing else is quantized."""
    for node in nodes:
        found = {"bits": 4} | attributes(node)
        symmetric = not any(node.input[3:])
        stored = (found.get("bits"), found.get("block_size"), symmetric)
        asked = embedding and (embedding.bits, embedding.block_size, embedding.symmetric)
        if node.op_type != "GatherBlockQuantized" or stored != asked:
            raise StepFailed(f"`{node.name}` ({node.op_type}) was not asked for, or not like this")
    if len(nodes) != (embedding is not None):
        raise StepFailed("the token embedding is not quantized, though asked for")


def describe(folder: Path) -> dict[str, Any]:
    """What the weights of ``folder`` take.

    Returns ``parameters``, ``weight_bytes`` (all initializers but rotary tables),
    ``bits_per_weight`` (8 × weight_bytes / parameters), ``size_bytes`` (both files) and ``linears``
    (bits → how many).
    """
    model = load(folder)
    shapes = {t.name: t for t in model.graph.initializer}
    counted: dict[str, int] = {n.weight: n.k * n.n for n in linears(model)}
    widths = [linear.dtype.removeprefix("fp") for linear in linears(model)]
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            found = attributes(node)
            widths.append(str(found["bits"]))
            counted |= {node.input[1]: found["K"] * found["N"], **dict.fromkeys(node.input[2:], 0)}
        elif node.op_type == "GatherBlockQuantized" and node.input[0] in shapes:
            counted |= dict.fromkeys(node.input[2:], 0)
    weights = [t for t in model.graph.initializer if not t.name.startswith(TABLES)]
    parameters = sum(counted.get(t.name, math.prod(t.dims)) for t in weights)
    weight_bytes = sum(place(t)[2] for t in weights)
    return {
        "parameters": parameters,
        "weight_bytes": weight_bytes,
        "bits_per_weight": round(8 * weight_bytes / parameters, 4),
        "size_bytes": sum((folder / name).stat().st_size for name in (MODEL, DATA)),
        "linears": {width: widths.count(width) for width in sorted(set(widths), key=int)},
    }

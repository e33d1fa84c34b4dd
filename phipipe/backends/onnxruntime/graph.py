"""ONNX decoder graphs on disk: reading and writing them, and what they hold.

A model is a folder with ``model.onnx`` (nodes) and ``model.onnx.data`` (every initializer,
external, in one file).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from phipipe.backends.onnxruntime.layout import DATA, MODEL
from phipipe.backends.onnxruntime.schemes import Linear
from phipipe.errors import StepFailed

QUANTIZED = frozenset(
    {"MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "QMoE", "MatMulInteger"}
)
FLOATS: Mapping[int, str] = {1: "fp32", 10: "fp16"}  # by ONNX data type
# Bytes per element, by ONNX data type.
_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2, 16: 2, 21: 0.5, 22: 0.5}


def load(folder: Path) -> ModelProto:
    """The graph of ``folder`` without its weights.

    Raises:
        StepFailed: there is none, or it cannot be read.
    """
    try:
        return onnx.load(str(folder / MODEL), load_external_data=False)
    except (OSError, ValueError) as error:
        raise StepFailed(f"`{folder.name}/{MODEL}` cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001 (protobuf's DecodeError has no stable place)
        raise StepFailed(f"`{folder.name}/{MODEL}` is damaged: {error}") from None


def save(model: ModelProto, folder: Path) -> None:
    """Write ``model`` (weights stay where they are), the same bytes for the same content."""
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def linears(model: ModelProto) -> list[Linear]:
    """The graph's products with a constant floating-point matrix, in order."""
    shapes = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    products = []
    for node in model.graph.node:
        kind, shape = shapes.get(node.input[1], (0, ())) if node.op_type == "MatMul" else (0, ())
        if kind in FLOATS and len(shape) == 2:
            product = Linear(
                name=node.name, weight=node.input[1], k=shape[0], n=shape[1], dtype=FLOATS[kind]
            )
            products.append(product)
    return products


def is_tied(model: ModelProto) -> bool:
    """Whether the token embedding reads the LM head's matrix (through a transpose)."""
    return any(
        n.op_type == "Transpose" and n.name.startswith("/model/embed_tokens/")
        for n in model.graph.node
    )


def check_files(folder: Path, model: ModelProto) -> None:
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


def place(tensor: TensorProto) -> tuple[str, int, int]:
    """(file, offset, length) of an external initializer; file is "" if it is not external."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries.get("location", ""), int(entries.get("offset", 0)), int(entries.get("length", 0))


def attributes(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}

"""The token embedding of a rounded graph: rows that are looked up in packed weights."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from phipipe.algorithms.olive_packed import Packed
from phipipe.backends.onnxruntime.graph import attributes


def share(model: ModelProto, transpose: NodeProto, gather: NodeProto, head: NodeProto) -> None:
    """Turn ``Transpose → Gather`` over the head's fp32 weight into a gather from its quantized
    form."""
    constant, reshape, lookup = _gather_quantized(gather, head)
    old, new = gather.output[0], lookup.output[0]
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    base = gather.name.removesuffix("/Gather")
    stale = {f"{base}/Transpose/output_0", old}
    transpose.CopyFrom(reshape)
    gather.CopyFrom(lookup)
    values = [v for v in model.graph.value_info if v.name not in stale]
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(values)
    model.graph.node.insert(0, constant)


def _gather_quantized(gather: NodeProto, head: NodeProto) -> tuple[NodeProto, NodeProto, NodeProto]:
    """Nodes that look up what ``gather`` does in the packed weight of ``head``: a shape, the weight
    in that shape [rows, bytes of a row], and the lookup."""
    stored = attributes(head)
    rows, row_bytes = stored["N"], stored["K"] * stored["bits"] // 8
    shape = f"/model/constants/INT64/[{rows}, {row_bytes}]"
    constant = helper.make_node(
        "Constant",
        [],
        [shape],
        name=shape.replace("constants", "constant_nodes"),
        value=numpy_helper.from_array(np.array([rows, row_bytes], dtype=np.int64), shape),
    )
    base = gather.name.removesuffix("/Gather")
    reshape = helper.make_node(
        "Reshape", [head.input[1], shape], [f"{base}/Reshape/output_0"], f"{base}/Reshape"
    )
    lookup = helper.make_node(
        "GatherBlockQuantized",
        [reshape.output[0], gather.input[1], *head.input[2:]],
        [f"{base}/GatherBlockQuantized/output_0"],
        f"{base}/GatherBlockQuantized",
        domain="com.microsoft",
        bits=stored["bits"],
        block_size=stored["block_size"],
        gather_axis=0,
        quantize_axis=1,
    )
    return constant, reshape, lookup


def own(name: str, gather: NodeProto, packed: Packed, dtype: str) -> list[TensorProto]:
    """The tensors that replace ``name``, the floats that ``gather`` reads; it becomes the lookup in
    them. Scales have the ``dtype`` of the graph."""
    scales = packed.scales.astype(dtype)
    codes = packed.weight.reshape(len(scales), -1)
    tensors = [
        numpy_helper.from_array(codes, f"{name}_Q{packed.bits}"),
        numpy_helper.from_array(scales, f"{name}_scales"),
    ]
    if packed.zeros is not None:
        tensors.append(numpy_helper.from_array(packed.zeros, f"{name}_zero_points"))
    first, *rest = (tensor.name for tensor in tensors)
    lookup = helper.make_node(
        "GatherBlockQuantized",
        [first, gather.input[1], *rest],
        list(gather.output),
        f"{gather.name}_Q{packed.bits}",
        domain="com.microsoft",
        bits=packed.bits,
        block_size=packed.group_size,
        gather_axis=0,
        quantize_axis=1,
    )
    gather.CopyFrom(lookup)
    return tensors

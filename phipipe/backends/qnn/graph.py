"""A dense decoder as ONNX graphs of fixed shape, as neural processing units want them.

Built from the checkpoint's tensors alone, with plain operators: no zero-size slice, no
data-dependent shape, no broadcast in a matrix product. A graph holds consecutive layers (all of
them, or a part where they are too large for one) and takes ``length`` tokens after a cache of
``context - length`` positions:

    inputs_embeds [1, length, hidden] float32, position_ids [1, length] int32, attention_mask [1,
    context] int32, past_key_i [kv heads, 1, head size, context - length], past_value_i [kv heads,
    1, context - length, head size] → hidden_states [1, length, hidden], present_key_i,
    present_value_i (the new positions only)

What passes from one part to the next is ``hidden_states_n``, the input of layer n, of the same
shape.

The cache is right-aligned: the caller drops its oldest positions and appends the new ones, as ONNX
Runtime GenAI's sliding cache does. ``attention_mask`` covers cache and new positions; 0 hides a
position.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from phipipe.backends.qnn.attention import Attention
from phipipe.backends.qnn.nodes import Nodes, linears
from phipipe.backends.qnn.shape import Shape
from phipipe.backends.qnn.weights import DataFile, Weights

OPSET = 21  # the first with 16-bit and 4-bit QuantizeLinear


def decoder(shape: Shape, weights: Weights, layers: range, data: DataFile) -> ModelProto:
    """The graph of ``layers``, with the last of all layers the last norm, too.

    ``weights`` are the checkpoint's, in float32. A linear's constant is its weight transposed, [in,
    out], in ``data``; graphs of other lengths have the same constants.
    """
    graph = Nodes(data)
    attention = Attention.of(graph, weights, shape)
    inputs, outputs = _border(shape, layers)
    value = inputs[0].name
    for i in layers:
        name = f"model.layers.{i}"
        normed = _norm(graph, f"{name}.input_layernorm", value, weights, shape)
        attended = attention.layer(i, normed)
        value = graph.node("Add", f"{name}.attention_residual", [value, attended])
        normed = _norm(graph, f"{name}.post_attention_layernorm", value, weights, shape)
        activated = _mlp(graph, name, normed, weights, shape)
        value = graph.node("Add", f"{name}.residual", [value, activated])
    if layers.stop == shape.layers:
        value = _norm(graph, "model.norm", value, weights, shape)
    graph.node("Identity", outputs[0].name, [value])
    return _model(graph, f"decoder_{layers.start}_{shape.length}", inputs, outputs)


def _border(s: Shape, layers: range) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    """What a graph of ``layers`` reads and makes; first the value that passes through."""
    first = f"hidden_states_{layers.start}" if layers.start else "inputs_embeds"
    last = "hidden_states" if layers.stop == s.layers else f"hidden_states_{layers.stop}"
    inputs = [
        helper.make_tensor_value_info(first, TensorProto.FLOAT, [1, s.length, s.hidden]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT32, [1, s.length]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT32, [1, s.context]),
    ]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, s.length, s.hidden])]
    for name in (f"{kind}_{i}" for i in layers for kind in ("key", "value")):
        kept, new = (_cache(s, name, count) for count in (s.context - s.length, s.length))
        inputs.append(helper.make_tensor_value_info(f"past_{name}", TensorProto.FLOAT, kept))
        outputs.append(helper.make_tensor_value_info(f"present_{name}", TensorProto.FLOAT, new))
    return inputs, outputs


def _cache(s: Shape, name: str, count: int) -> list[int]:
    """The shape of ``count`` positions of keys or values: the layout of ONNX Runtime GenAI's
    sliding cache."""
    if name.startswith("key"):
        return [s.kv_heads, 1, s.head_size, count]
    return [s.kv_heads, 1, count, s.head_size]


def head(shape: Shape, weights: Weights, data: DataFile) -> ModelProto:
    """hidden_states [1, length, hidden] → logits [1, length, vocabulary]; its constant is in
    ``data``."""
    graph, length = Nodes(data), shape.length
    graph.linear("logits", "hidden_states", "lm_head.weight", lambda: weights["lm_head.weight"])
    vocabulary = graph.constants["lm_head.weight"].dims[1]
    states = helper.make_tensor_value_info(
        "hidden_states", TensorProto.FLOAT, [1, length, shape.hidden]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, length, vocabulary])
    return _model(graph, f"head_{length}", [states], [logits])


def embedding(weights: Weights, data: DataFile) -> ModelProto:
    """input_ids [1, any] int32 → inputs_embeds [1, any, hidden]; runs on the CPU; its table is in
    ``data``."""
    graph, name = Nodes(data), "model.embed_tokens.weight"
    table = graph.constants[name] = data.place(name, lambda: weights[name])
    graph.node("Gather", "inputs_embeds", [name, "input_ids"], axis=0)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, "length"])
    vectors = helper.make_tensor_value_info(
        "inputs_embeds", TensorProto.FLOAT, [1, "length", table.dims[1]]
    )
    return _model(graph, "embedding", [ids], [vectors])


def _model(
    nodes: Nodes, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
) -> ModelProto:
    graph = helper.make_graph(
        nodes.nodes, name, list(inputs), list(outputs), list(nodes.constants.values())
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10, producer_name="phipipe")


def _norm(graph: Nodes, name: str, value: str, weights: Weights, s: Shape) -> str:
    return graph.norm(name, value, weights[f"{name}.weight"], s.epsilon)


def _mlp(graph: Nodes, layer: str, value: str, weights: Weights, s: Shape) -> str:
    name = f"{layer}.mlp"
    stored = {f"{name}.gate_proj": s.inner, f"{name}.up_proj": s.inner}
    found = linears(weights, stored, f"{name}.gate_up_proj")
    found |= linears(weights, {f"{name}.down_proj": s.hidden})
    gate, up = (
        graph.apply(f"{name}.{kind}", value, found[f"{name}.{kind}_proj"])
        for kind in ("gate", "up")
    )
    sigmoid = graph.node("Sigmoid", f"{name}.sigmoid", [gate])
    activated = graph.node("Mul", f"{name}.activated", [gate, sigmoid])
    product = graph.node("Mul", f"{name}.product", [activated, up])
    return graph.apply(f"{name}.down", product, found[f"{name}.down_proj"])

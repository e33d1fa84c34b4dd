"""A Phi-3 decoder as ONNX graphs of fixed shape, as neural processing units want them.

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

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.backends.qnn.weights import DataFile

    Weights = Mapping[str, npt.NDArray[np.float32]]

OPSET = 21  # the first with 16-bit and 4-bit QuantizeLinear
# What hides a position. Larger would cost resolution where scores are stored in 16 bits; e^-100 is
# 0 in them anyway.
HIDDEN = -100.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed sizes of one graph, and what the checkpoint's config says of the model."""

    length: int
    context: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    rotary: int
    inner: int
    epsilon: float
    inverse_frequencies: tuple[float, ...]
    attention_factor: float


def shape_of(config: Mapping[str, Any], length: int, context: int) -> Shape:
    """``Shape`` from a Phi-3 ``config.json``.

    LongRoPE's factors are chosen once, by ``context``, as they are for prompts of that length; the
    attention factor is that of transformers, sqrt(1 + ln(scale) / ln(original context)).

    Raises:
        StepFailed: the config is not of a model that this module builds.
    """
    if config.get("model_type") != "phi3":
        raise StepFailed(
            f"static graphs are built for phi3 models, not `{config.get('model_type')}`"
        )
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    rotary = int(size * config.get("partial_rotary_factor", 1.0))
    base, factor = config.get("rope_theta", 10000.0), 1.0
    frequencies = [base ** -(i / rotary) for i in range(0, rotary, 2)]
    if scaling := config.get("rope_scaling"):
        if (kind := scaling.get("type", scaling.get("rope_type"))) not in ("longrope", "su"):
            raise StepFailed(f"static graphs know no rotary scaling `{kind}`")
        original = config["original_max_position_embeddings"]
        chosen = scaling["long_factor" if context > original else "short_factor"]
        frequencies = [f / c for f, c in zip(frequencies, chosen, strict=True)]
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return Shape(
        length=length,
        context=context,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=size,
        rotary=rotary,
        inner=config["intermediate_size"],
        epsilon=config["rms_norm_eps"],
        inverse_frequencies=tuple(frequencies),
        attention_factor=factor,
    )


class _Graph:
    """Nodes and constants under construction; names of values are those of the nodes that make
    them.

    Weights of linears go into ``data``.
    """

    def __init__(self, data: DataFile) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.data = data

    def node(
        self, kind: str, name: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any
    ) -> Any:
        from onnx import helper

        made = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def linear(
        self, name: str, value: str, weight: str, read: Callable[[], npt.NDArray[np.float32]]
    ) -> str:
        """``value`` times the constant ``weight``; ``read`` gives it as the checkpoint stores it,
        [out, in]."""
        self.constants[weight] = self.data.place(weight, lambda: read().T)
        return str(self.node("MatMul", name, [value, weight]))

    def reshape(self, name: str, value: str, *sizes: int) -> str:
        import numpy as np

        shape = self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        return str(self.node("Reshape", name, [value, shape]))

    def transpose(self, name: str, value: str, *order: int) -> str:
        return str(self.node("Transpose", name, [value], perm=list(order)))


def ranges_of(layers: int, parts: int) -> list[range]:
    """``layers`` consecutive numbers in ``parts`` ranges that differ by one at most, the longer
    ones first."""
    size, longer = divmod(layers, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


def decoder(shape: Shape, weights: Weights, layers: range, data: DataFile) -> Any:
    """The ``onnx.ModelProto`` of ``layers``, with the last of all layers the last norm, too.

    ``weights`` are the checkpoint's, in float32. A linear's constant is its weight transposed, [in,
    out], in ``data``; graphs of other lengths have the same constants.
    """
    from onnx import TensorProto, helper

    graph, s, last = _Graph(data), shape, layers.stop == shape.layers
    rotation, mask = _positions(graph, s), _mask(graph, s)
    value = f"hidden_states_{layers.start}" if layers.start else "inputs_embeds"
    made = "hidden_states" if last else f"hidden_states_{layers.stop}"
    inputs = [
        helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, s.length, s.hidden]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT32, [1, s.length]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT32, [1, s.context]),
    ]
    outputs = [helper.make_tensor_value_info(made, TensorProto.FLOAT, [1, s.length, s.hidden])]
    for i in layers:
        name = f"model.layers.{i}"
        normed = _norm(graph, f"{name}.input_layernorm", value, weights, s)
        attended = _attention(graph, i, normed, weights, rotation, mask, s)
        value = str(graph.node("Add", f"{name}.attention_residual", [value, attended]))
        normed = _norm(graph, f"{name}.post_attention_layernorm", value, weights, s)
        value = str(
            graph.node("Add", f"{name}.residual", [value, _mlp(graph, name, normed, weights, s)])
        )
        for kind in ("key", "value"):
            kept, new = (_cache(s, kind, count) for count in (s.context - s.length, s.length))
            inputs.append(
                helper.make_tensor_value_info(f"past_{kind}_{i}", TensorProto.FLOAT, kept)
            )
            outputs.append(
                helper.make_tensor_value_info(f"present_{kind}_{i}", TensorProto.FLOAT, new)
            )
    if last:
        value = _norm(graph, "model.norm", value, weights, s)
    graph.node("Identity", made, [value])
    return _model(graph, f"decoder_{layers.start}_{s.length}", inputs, outputs)


def _cache(s: Shape, kind: str, count: int) -> list[int]:
    """The shape of ``count`` positions of keys or values: the layout of ONNX Runtime GenAI's
    sliding cache."""
    return (
        [s.kv_heads, 1, s.head_size, count]
        if kind == "key"
        else [s.kv_heads, 1, count, s.head_size]
    )


def head(shape: Shape, weights: Weights, data: DataFile) -> Any:
    """hidden_states [1, length, hidden] → logits [1, length, vocabulary]; its constant is in
    ``data``."""
    from onnx import TensorProto, helper

    graph = _Graph(data)
    graph.linear("logits", "hidden_states", "lm_head.weight", lambda: weights["lm_head.weight"])
    vocabulary = graph.constants["lm_head.weight"].dims[1]
    inputs = [
        helper.make_tensor_value_info(
            "hidden_states", TensorProto.FLOAT, [1, shape.length, shape.hidden]
        )
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, shape.length, vocabulary])
    ]
    return _model(graph, f"head_{shape.length}", inputs, outputs)


def embedding(weights: Weights, data: DataFile) -> Any:
    """input_ids [1, any] int32 → inputs_embeds [1, any, hidden]; runs on the CPU; its table is in
    ``data``."""
    from onnx import TensorProto, helper

    graph, name = _Graph(data), "model.embed_tokens.weight"
    table = graph.constants[name] = data.place(name, lambda: weights[name])
    graph.node("Gather", "inputs_embeds", [name, "input_ids"], axis=0)
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, "length"])]
    outputs = [
        helper.make_tensor_value_info(
            "inputs_embeds", TensorProto.FLOAT, [1, "length", table.dims[1]]
        )
    ]
    return _model(graph, "embedding", inputs, outputs)


def _model(graph: _Graph, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    from onnx import helper

    made = helper.make_graph(
        graph.nodes, name, list(inputs), list(outputs), list(graph.constants.values())
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="phipipe"
    )


def _norm(graph: _Graph, name: str, value: str, weights: Weights, s: Shape) -> str:
    """RMSNorm: value / sqrt(mean(value²) + ε) × weight."""
    import numpy as np

    square = graph.node("Mul", f"{name}.square", [value, value])
    mean = graph.node(
        "ReduceMean",
        f"{name}.mean",
        [square, graph.constant("last_axis", np.array([-1], np.int64))],
    )
    added = graph.node(
        "Add", f"{name}.add", [mean, graph.constant("epsilon", np.array(s.epsilon, np.float32))]
    )
    root = graph.node("Sqrt", f"{name}.root", [added])
    scaled = graph.node("Div", f"{name}.scaled", [value, root])
    weight = graph.constant(f"{name}.weight", weights[f"{name}.weight"])
    return str(graph.node("Mul", name, [scaled, weight]))


def _positions(graph: _Graph, s: Shape) -> tuple[str, str]:
    """Cosines and sines [1, length, 1, rotary] of the positions, looked up in tables of ``context``
    rows."""
    import numpy as np

    angles = np.outer(np.arange(s.context), np.array(s.inverse_frequencies))
    angles = np.concatenate([angles, angles], -1)
    made = []
    for name, of in (("cos", np.cos), ("sin", np.sin)):
        table = graph.constant(
            f"{name}_table", (of(angles) * s.attention_factor).astype(np.float32)
        )
        row = str(graph.node("Gather", f"{name}_rows", [table, "position_ids"], axis=0))
        made.append(graph.reshape(name, row, 1, s.length, 1, s.rotary))
    return made[0], made[1]


def _mask(graph: _Graph, s: Shape) -> str:
    """What is added to the scores, [1, 1, length, context]: 0 where a position is seen, ``HIDDEN``
    (or twice) else."""
    import numpy as np

    seen = graph.node("Cast", "mask_seen", ["attention_mask"], to=1)
    off = graph.node("Sub", "mask_off", [graph.constant("one", np.array(1.0, np.float32)), seen])
    scaled = graph.node(
        "Mul", "mask_scaled", [off, graph.constant("hidden", np.array(HIDDEN, np.float32))]
    )
    column = graph.reshape("mask_column", str(scaled), 1, 1, 1, s.context)
    later = np.triu(np.full((s.length, s.length), HIDDEN, np.float32), 1)
    causal = np.concatenate([np.zeros((s.length, s.context - s.length), np.float32), later], -1)
    table = graph.constant("causal", causal.reshape(1, 1, s.length, s.context))
    return str(graph.node("Add", "mask", [column, table]))


def _rotated(graph: _Graph, name: str, value: str, rotation: tuple[str, str], s: Shape) -> str:
    """Rotary embedding of ``value`` [1, length, heads, head size]; what lies beyond ``rotary``
    passes through."""
    import numpy as np

    def split(name: str, value: str, *sizes: int) -> list[str]:
        wanted = graph.constant("split_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))
        return list(graph.node("Split", name, [value, wanted], outputs=len(sizes), axis=-1))

    rest: list[str] = []
    if s.rotary < s.head_size:
        value, *rest = split(f"{name}.parts", value, s.rotary, s.head_size - s.rotary)
    first, second = split(f"{name}.halves", value, s.rotary // 2, s.rotary // 2)
    negated = graph.node("Neg", f"{name}.negated", [second])
    turned = graph.node("Concat", f"{name}.turned", [negated, first], axis=-1)
    by_cos = graph.node("Mul", f"{name}.by_cos", [value, rotation[0]])
    by_sin = graph.node("Mul", f"{name}.by_sin", [turned, rotation[1]])
    made = str(graph.node("Add", f"{name}.rotated", [by_cos, by_sin]))
    return str(graph.node("Concat", f"{name}.whole", [made, *rest], axis=-1)) if rest else made


def _attention(
    graph: _Graph,
    i: int,
    value: str,
    weights: Weights,
    rotation: tuple[str, str],
    mask: str,
    s: Shape,
) -> str:
    import numpy as np

    name = f"model.layers.{i}.self_attn"
    parts, start = {}, 0
    for kind, count in (("q", s.heads), ("k", s.kv_heads), ("v", s.kv_heads)):
        read = _rows(
            weights, f"{name}.qkv_proj.weight", start, start := start + count * s.head_size
        )
        product = graph.linear(f"{name}.{kind}", value, f"{name}.{kind}_proj.weight", read)
        parts[kind] = graph.reshape(
            f"{name}.{kind}_heads", product, 1, s.length, count, s.head_size
        )
    groups = s.heads // s.kv_heads
    query = _rotated(graph, f"{name}.q", parts["q"], rotation, s)
    query = graph.transpose(f"{name}.q_by_head", query, 2, 0, 1, 3)
    query = graph.reshape(f"{name}.q_grouped", query, s.kv_heads, 1, groups * s.length, s.head_size)
    key = graph.transpose(
        f"present_key_{i}", _rotated(graph, f"{name}.k", parts["k"], rotation, s), 2, 0, 3, 1
    )
    made = graph.transpose(f"present_value_{i}", parts["v"], 2, 0, 1, 3)
    keys = str(graph.node("Concat", f"{name}.keys", [f"past_key_{i}", key], axis=-1))
    values = str(graph.node("Concat", f"{name}.values", [f"past_value_{i}", made], axis=-2))
    scale = graph.constant("attention_scale", np.array(s.head_size**-0.5, np.float32))
    scores = graph.node("MatMul", f"{name}.products", [query, keys])
    scores = graph.node("Mul", f"{name}.scores", [scores, scale])
    scores = graph.reshape(
        f"{name}.scores_by_head", str(scores), s.kv_heads, groups, s.length, s.context
    )
    masked = graph.node("Add", f"{name}.masked", [scores, mask])
    shares = str(graph.node("Softmax", f"{name}.shares", [masked], axis=-1))
    shares = graph.reshape(
        f"{name}.shares_grouped", shares, s.kv_heads, 1, groups * s.length, s.context
    )
    mixed = str(graph.node("MatMul", f"{name}.mixed", [shares, values]))
    mixed = graph.reshape(f"{name}.mixed_by_head", mixed, s.heads, 1, s.length, s.head_size)
    mixed = graph.transpose(f"{name}.mixed_by_token", mixed, 1, 2, 0, 3)
    mixed = graph.reshape(f"{name}.mixed_joined", mixed, 1, s.length, s.heads * s.head_size)
    output = f"{name}.o_proj.weight"
    return graph.linear(f"{name}.o", mixed, output, lambda: weights[output])


def _rows(
    weights: Weights, name: str, start: int, end: int
) -> Callable[[], npt.NDArray[np.float32]]:
    """Reads some rows of a joined linear."""
    return lambda: weights[name][start:end]


def _mlp(graph: _Graph, layer: str, value: str, weights: Weights, s: Shape) -> str:
    name = f"{layer}.mlp"
    gate, up = (
        graph.linear(
            f"{name}.{kind}",
            value,
            f"{name}.{kind}_proj.weight",
            _rows(weights, f"{name}.gate_up_proj.weight", start, start + s.inner),
        )
        for kind, start in (("gate", 0), ("up", s.inner))
    )
    sigmoid = graph.node("Sigmoid", f"{name}.sigmoid", [gate])
    activated = graph.node("Mul", f"{name}.activated", [gate, sigmoid])
    product = str(graph.node("Mul", f"{name}.product", [activated, up]))
    down = f"{name}.down_proj.weight"
    return graph.linear(f"{name}.down", product, down, lambda: weights[down])

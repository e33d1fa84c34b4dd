"""Attention over a cache that slides, with plain operators of fixed shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phipipe.backends.qnn.nodes import Nodes, linears
from phipipe.backends.qnn.shape import Shape
from phipipe.backends.qnn.weights import Weights

# What hides a position. Larger would cost resolution where scores are stored in 16 bits; e^-100 is
# 0 in them anyway.
HIDDEN = -100.0


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the layers of one graph share: ``cos``, ``sin`` [1, length, 1, rotary] and ``mask`` [1,
    1, length, context] are names of values."""

    nodes: Nodes
    weights: Weights
    shape: Shape
    cos: str
    sin: str
    mask: str

    @classmethod
    def of(cls, nodes: Nodes, weights: Weights, shape: Shape) -> Attention:
        """Adds the nodes of rotation and mask."""
        cos, sin = _positions(nodes, shape)
        mask = _mask(nodes, shape)
        return cls(nodes=nodes, weights=weights, shape=shape, cos=cos, sin=sin, mask=mask)

    def layer(self, i: int, value: str) -> str:
        """The attention of layer ``i`` over ``value``; makes ``present_key_i`` and
        ``present_value_i``, too."""
        graph, s, name = self.nodes, self.shape, f"model.layers.{i}.self_attn"
        heads = self._heads(name, value)
        query, rotated = heads["q"], heads["k"]
        if i not in s.unrotated:
            query = self._rotated(f"{name}.q", query)
            rotated = self._rotated(f"{name}.k", rotated)
        query = graph.transpose(f"{name}.q_by_head", query, 2, 0, 1, 3)
        rows_of_group = s.heads // s.kv_heads * s.length
        query = graph.reshape(f"{name}.q_grouped", query, s.kv_heads, 1, rows_of_group, s.head_size)
        key = graph.transpose(f"present_key_{i}", rotated, 2, 0, 3, 1)
        new = graph.transpose(f"present_value_{i}", heads["v"], 2, 0, 1, 3)
        keys = graph.node("Concat", f"{name}.keys", [f"past_key_{i}", key], axis=-1)
        values = graph.node("Concat", f"{name}.values", [f"past_value_{i}", new], axis=-2)
        shares = self._shares(name, query, keys)
        mixed = graph.node("MatMul", f"{name}.mixed", [shares, values])
        mixed = graph.reshape(f"{name}.mixed_by_head", mixed, s.heads, 1, s.length, s.head_size)
        mixed = graph.transpose(f"{name}.mixed_by_token", mixed, 1, 2, 0, 3)
        mixed = graph.reshape(f"{name}.mixed_joined", mixed, 1, s.length, s.heads * s.head_size)
        output = f"{name}.o_proj"
        linear = linears(self.weights, {output: s.hidden})[output]
        return graph.apply(f"{name}.o", mixed, linear)

    def _heads(self, name: str, value: str) -> dict[str, str]:
        """ "q", "k" and "v" of ``value``, [1, length, heads, head size]; queries and keys normed
        head by head where the checkpoint has norms for them."""
        s, parts = self.shape, {}
        counts = {"q": s.heads, "k": s.kv_heads, "v": s.kv_heads}
        stored = {f"{name}.{kind}_proj": count * s.head_size for kind, count in counts.items()}
        found = linears(self.weights, stored, f"{name}.qkv_proj")
        for kind, count in counts.items():
            product = self.nodes.apply(f"{name}.{kind}", value, found[f"{name}.{kind}_proj"])
            heads = self.nodes.reshape(
                f"{name}.{kind}_heads", product, 1, s.length, count, s.head_size
            )
            norm = f"{name}.{kind}_norm"
            if f"{norm}.weight" in self.weights:
                heads = self.nodes.norm(norm, heads, self.weights[f"{norm}.weight"], s.epsilon)
            parts[kind] = heads
        return parts

    def _rotated(self, name: str, value: str) -> str:
        """Rotary embedding of ``value`` [1, length, heads, head size]; what lies beyond ``rotary``
        passes through."""
        graph, s = self.nodes, self.shape
        rest: list[str] = []
        if s.rotary < s.head_size:
            value, *rest = graph.split(f"{name}.parts", value, s.rotary, s.head_size - s.rotary)
        first, second = graph.split(f"{name}.halves", value, s.rotary // 2, s.rotary // 2)
        negated = graph.node("Neg", f"{name}.negated", [second])
        turned = graph.node("Concat", f"{name}.turned", [negated, first], axis=-1)
        by_cos = graph.node("Mul", f"{name}.by_cos", [value, self.cos])
        by_sin = graph.node("Mul", f"{name}.by_sin", [turned, self.sin])
        whole = graph.node("Add", f"{name}.rotated", [by_cos, by_sin])
        return graph.node("Concat", f"{name}.whole", [whole, *rest], axis=-1) if rest else whole

    def _shares(self, name: str, query: str, keys: str) -> str:
        """What each position takes from each: softmax of scaled, masked products, by groups of
        heads that share a key."""
        graph, s = self.nodes, self.shape
        groups = s.heads // s.kv_heads
        scale = graph.constant("attention_scale", np.array(s.head_size**-0.5, np.float32))
        scores = graph.node("MatMul", f"{name}.products", [query, keys])
        scores = graph.node("Mul", f"{name}.scores", [scores, scale])
        scores = graph.reshape(
            f"{name}.scores_by_head", scores, s.kv_heads, groups, s.length, s.context
        )
        masked = graph.node("Add", f"{name}.masked", [scores, self.mask])
        shares = graph.node("Softmax", f"{name}.shares", [masked], axis=-1)
        return graph.reshape(
            f"{name}.shares_grouped", shares, s.kv_heads, 1, groups * s.length, s.context
        )


def _positions(graph: Nodes, s: Shape) -> tuple[str, str]:
    """Cosines and sines [1, length, 1, rotary] of the positions, looked up in tables of ``context``
    rows."""
    angles = np.outer(np.arange(s.context), np.array(s.inverse_frequencies))
    angles = np.concatenate([angles, angles], -1)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    looked_up = []
    for name, values in tables.items():
        scaled = (values * s.attention_factor).astype(np.float32)
        table = graph.constant(f"{name}_table", scaled)
        row = graph.node("Gather", f"{name}_rows", [table, "position_ids"], axis=0)
        looked_up.append(graph.reshape(name, row, 1, s.length, 1, s.rotary))
    return looked_up[0], looked_up[1]


def _mask(graph: Nodes, s: Shape) -> str:
    """What is added to the scores, [1, 1, length, context]: 0 where a position is seen, ``HIDDEN``
    (or twice) else."""
    seen = graph.node("Cast", "mask_seen", ["attention_mask"], to=1)
    off = graph.node("Sub", "mask_off", [graph.constant("one", np.array(1.0, np.float32)), seen])
    scaled = graph.node(
        "Mul", "mask_scaled", [off, graph.constant("hidden", np.array(HIDDEN, np.float32))]
    )
    column = graph.reshape("mask_column", scaled, 1, 1, 1, s.context)
    later = np.triu(np.full((s.length, s.length), HIDDEN, np.float32), 1)
    causal = np.concatenate([np.zeros((s.length, s.context - s.length), np.float32), later], -1)
    table = graph.constant("causal", causal.reshape(1, 1, s.length, s.context))
    return graph.node("Add", "mask", [column, table])

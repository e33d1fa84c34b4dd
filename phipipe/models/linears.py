"""The matrices of a model by names that are the same on every backend: ``layers.3.mlp.down_proj``,
``lm_head``, ``embed_tokens``.

They are those of the checkpoint without ``model.`` and ``.weight``. Phi's older names are spelled
as all others' (``dense`` is ``o_proj``, ``fc1`` is ``up_proj``, ``fc2`` is ``down_proj``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe.models import layouts

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

EMBEDDING, HEAD = "embed_tokens", "lm_head"
# What one checkpoint keeps as one matrix and another apart, rows in this order.
JOINED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_RENAMED = {"dense": "o_proj", "fc1": "up_proj", "fc2": "down_proj"}
_LINEAR = re.compile(r"(?:model\.)?(layers\.\d+\.(?:self_attn|mlp)\.)(\w+)(?:\.base_layer)?")


def linear_of(tensor: str) -> str | None:
    """The name of the matrix that the checkpoint's ``tensor`` holds; None if it holds a norm, a
    bias or something else."""
    stem, _, last = tensor.rpartition(".")
    if last != "weight":
        return None
    if stem in ("lm_head", "model.embed_tokens"):
        return stem.removeprefix("model.")
    found = _LINEAR.fullmatch(stem)
    if not found or found[2].endswith("norm"):
        return None
    return found[1] + _RENAMED.get(found[2], found[2])


def joined(name: str) -> str | None:
    """The name under which other checkpoints keep ``name`` in one matrix with its neighbours."""
    prefix, _, last = name.rpartition(".")
    for whole, parts in JOINED.items():
        if last in parts:
            return f"{prefix}.{whole}"
    return None


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Name → (rows, columns) of every matrix of the model, a head of its own last; {} for an
    architecture without a known layout, and for one with experts."""
    layout = layouts.LAYOUTS.get(checkpoint.architecture)
    if layout is None or checkpoint.experts:
        return {}
    tensors = layouts.wanted(layout, layouts.sizes_of(checkpoint))
    named = {linear_of(tensor): shape for tensor, shape in tensors.items()}
    return {name: (s[0], s[1]) for name, s in named.items() if name and len(s) == 2}


def layer_of(name: str) -> int | None:
    """The layer that a matrix belongs to; None outside of them."""
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """``layers.*.mlp.down_proj`` of ``layers.3.mlp.down_proj``: a pattern for all layers."""
    return name.replace(f".{layer_of(name)}.", ".*.", 1)

"""Weights that Olive rounded, read as the integers they are (without torch).

Olive's layout of a rounded linear [n, k]: ``qweight`` uint8 [n, k × bits / 8], packed from the
lowest bits up; ``scales`` [n, k / group size]; ``qzeros`` uint8 [n, groups, packed], if asymmetric.
These are the bytes that ONNX Runtime's ``MatMulNBits`` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from phipipe.errors import StepFailed
from phipipe.models.weight_files import shards

PARTS = ("qweight", "scales", "qzeros")
# What a checkpoint keeps as one matrix and a graph may hold apart, rows in this order.
JOINED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A rounded weight [n, k]: ``weight`` uint8 [n, k × bits / 8], ``scales`` float32 [n, groups],
    ``zeros`` packed."""

    bits: int
    group_size: int
    weight: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8] | None

    def rows(self, start: int, stop: int) -> Packed:
        """The part that makes outputs ``start`` to ``stop``."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return Packed(
            bits=self.bits,
            group_size=self.group_size,
            weight=self.weight[start:stop],
            scales=self.scales[start:stop],
            zeros=zeros,
        )

    def dense(self) -> npt.NDArray[np.float32]:
        """The weight [n, k] that these integers stand for."""
        levels = _unpacked(self.weight, self.bits).reshape(*self.scales.shape, -1)
        middle = np.full(self.scales.shape, 2 ** (self.bits - 1))
        zeros = (
            middle
            if self.zeros is None
            else _unpacked(self.zeros, self.bits)[:, : self.scales.shape[1]]
        )
        steps = (levels - zeros[..., None]).astype(np.float32)
        dense: npt.NDArray[np.float32] = steps * self.scales[..., None]
        return dense.reshape(len(self.scales), -1)


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    if bits == 8:
        return packed.astype(np.int32)
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node's weight lies: rows ``start`` to ``stop`` of the checkpoint's ``linear``."""

    linear: str
    start: int
    stop: int


class Rounded:
    """The rounded linears of a checkpoint in Olive's layout, read one at a time (without torch)."""

    def __init__(self, folder: Path) -> None:
        self._where = {name: path for path in shards(folder) for name in _names(path)}
        self._settings = json.loads((folder / "config.json").read_text("utf-8"))[
            "quantization_config"
        ]

    def __contains__(self, linear: str) -> bool:
        return f"{linear}.qweight" in self._where

    def bits(self, linear: str) -> int:
        """Bits of each of its integers."""
        override = (self._settings.get("overrides") or {}).get(linear, {})
        return int(override.get("bits", self._settings["bits"]))

    def packed(self, linear: str) -> Packed:
        """The integers and scales of ``linear``, "model.layers.0.mlp.down_proj"."""
        names = {part: f"{linear}.{part}" for part in PARTS}
        stored = {part: self._read(name) for part, name in names.items() if name in self._where}
        return Packed(
            bits=self.bits(linear),
            group_size=self._settings["group_size"],
            weight=stored["qweight"],
            scales=stored["scales"],
            zeros=stored.get("qzeros"),
        )

    def at(self, place: Place) -> Packed:
        """The part of a linear that ``place`` names."""
        return self.packed(place.linear).rows(place.start, place.stop)

    def _read(self, name: str) -> Any:
        with safe_open(self._where[name], framework="numpy") as shard:
            return shard.get_tensor(name)


def places(rounded: Rounded, sizes: Mapping[str, int]) -> dict[str, Place]:
    """Node → where its weight lies, for the nodes of an ONNX decoder; ``sizes`` are their numbers
    of outputs.

    Raises:
        StepFailed: the checkpoint has no rounded weight for a node.
    """
    return {node: _place(node, rounded, sizes) for node in sizes}


def _place(node: str, rounded: Rounded, sizes: Mapping[str, int]) -> Place:
    linear = (
        node.strip("/").removesuffix("/MatMul").replace("/attn/", "/self_attn/").replace("/", ".")
    )
    size = sizes[node]
    if linear in rounded:
        return Place(linear=linear, start=0, stop=size)
    prefix, _, last = linear.rpartition(".")
    for joined, parts in JOINED.items():
        if last in parts and f"{prefix}.{joined}" in rounded:
            before = [node.replace(f"/{last}/", f"/{part}/") for part in parts[: parts.index(last)]]
            start = sum(sizes[other] for other in before)
            return Place(linear=f"{prefix}.{joined}", start=start, stop=start + size)
    raise StepFailed(f"the rounded checkpoint has no weight for `{node}`")


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="numpy") as shard:
        return list(shard.keys())

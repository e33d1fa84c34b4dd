"""Checkpoints of a few kilobytes of every architecture that has a layout: zeros under the right
names, with the tokenizer of ``hostile_checkpoints``."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe.models import checkpoints, layouts
from testing import hostile_checkpoints as hostile
from testing.hostile_checkpoints import CONFIG, INDEX, WEIGHTS

_OWN: Mapping[str, dict[str, Any]] = {
    "PhiForCausalLM": {"hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
    "PhiMoEForCausalLM": {"num_local_experts": 2, "num_experts_per_tok": 2},
    "PhimoeForCausalLM": {"num_local_experts": 2, "num_experts_per_tok": 2},
    "Gemma3ForCausalLM": {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": hostile.GONE},
    "SmolLM3ForCausalLM": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 4},
}
_PHI3_ONLY = ("auto_map", "embd_pdrop", "layer_types", "original_max_position_embeddings")
ARCHITECTURES = tuple(
    name for name, layout in layouts.LAYOUTS.items() if layout.model_type not in ("phi4mm",)
)


def config_of(architecture: str, **changes: Any) -> dict[str, Any]:
    """Its ``config.json``; keys that are ``hostile.GONE`` are left out."""
    told: dict[str, Any] = {
        **CONFIG,
        "architectures": [architecture],
        "model_type": layouts.LAYOUTS[architecture].model_type,
    }
    if told["model_type"] != "phi3":
        told |= {"rope_scaling": None, "sliding_window": None}
        told |= dict.fromkeys((*_PHI3_ONLY, "partial_rotary_factor"), hostile.GONE)
    told |= _OWN.get(architecture, {}) | changes
    return {key: value for key, value in told.items() if value is not hostile.GONE}


def shapes_of(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Names and shapes of all tensors that the architecture has."""
    layout = layouts.LAYOUTS[config["architectures"][0]]
    sizes = layouts.sizes_of(checkpoints.of_config(config))
    return {name: list(shape) for name, shape in layouts.wanted(layout, sizes).items()}


def write(folder: Path, architecture: str = "LlamaForCausalLM", **changes: Any) -> Path:
    """The checkpoint, its config with ``changes``, in the new ``folder``."""
    hostile.base(folder)
    (folder / INDEX).unlink()
    config = config_of(architecture, **changes)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save(folder / WEIGHTS, hostile.header(shapes_of(config)))
    return folder


def save(path: Path, header: Mapping[str, Any]) -> None:
    """A safetensors file of zeros with this header."""
    raw = json.dumps(header).encode()
    ends = [told["data_offsets"][1] for name, told in header.items() if name != "__metadata__"]
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(max(ends, default=0)))

"""LoRA adapters for the small checkpoint of ``hostile_checkpoints``, in PEFT's layout, without
PEFT.

Needs nothing but Python: its numbers are F32, all of them ``FILL``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testing.hostile_checkpoints import (
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    header,
)

RANK, FILL = 4, 0.25
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
Shapes = dict[str, list[int]]
# Output and input widths of the modules that adapters change.
WIDTHS: Mapping[str, tuple[int, int]] = {
    "self_attn.qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_up_proj": (2 * INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
}
USUAL = ("self_attn.qkv_proj", "self_attn.o_proj")


def settings(*modules: str, **changes: Any) -> dict[str, Any]:
    """``adapter_config.json`` for these modules of a layer."""
    told = {
        "base_model_name_or_path": "someone/tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": [module.rpartition(".")[2] for module in modules or USUAL],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return {**told, **changes}


def shapes(*modules: str, rank: int = RANK) -> Shapes:
    """The adapter's tensors for these modules of every layer."""
    found: Shapes = {}
    for layer in range(LAYERS):
        for module in modules or USUAL:
            rows, columns = WIDTHS[module]
            at = f"{PREFIX}model.layers.{layer}.{module}"
            found |= {f"{at}.lora_A.weight": [rank, columns], f"{at}.lora_B.weight": [rows, rank]}
    return found


def tables(rows: int = VOCABULARY) -> Shapes:
    """Embedding and head as they are saved whole."""
    return {f"{PREFIX}{name}.weight": [rows, HIDDEN] for name in ("model.embed_tokens", "lm_head")}


def write(folder: Path, told: Mapping[str, Any], wanted: Shapes, fill: float = FILL) -> Path:
    """The adapter with these settings and tensors in the new ``folder``."""
    folder.mkdir(parents=True)
    (folder / SETTINGS).write_text(json.dumps(told), "utf-8")
    save(folder / WEIGHTS, wanted, fill)
    return folder


def save(path: Path, wanted: Shapes, fill: float = FILL) -> None:
    """A safetensors file of such tensors, every number ``fill``."""
    raw = json.dumps(header(wanted)).encode()
    count = sum(math.prod(shape) for shape in wanted.values())
    body = struct.pack("<f", fill) * count
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)

"""Copies of the embedded model with other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from phipipe.hub import take
from phipipe.models import checkpoints

TINY = take.BUILTIN_MODELS["tiny-phi3"]
LONGROPE = {
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 512,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1 + i / 64 for i in range(32)],
        "long_factor": [2 + i / 8 for i in range(32)],
    },
}


def source(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    for name in checkpoints.files(TINY):
        shutil.copyfile(TINY / name, folder / name)
    changed = json.loads((TINY / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    return folder


def tie(folder: Path) -> None:
    """Take the LM head's own matrix away."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    start, end = header.pop("lm_head.weight")["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - start) for offset in entry["data_offsets"]]
    packed = json.dumps(header).encode()
    body = data[8 + size :]
    (folder / "model.safetensors").write_bytes(
        len(packed).to_bytes(8, "little") + packed + body[:start] + body[end:]
    )

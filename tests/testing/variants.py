"""The embedded model for toolchains with torch: its texts as tokens, and what it is not itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from phipipe.hub.take import ASSETS, BUILTIN_MODELS
from phipipe.models.weight_files import INDEX

TINY = BUILTIN_MODELS["tiny-phi3"]


def tokens(name: str, windows: int, window: int) -> Any:
    """int32 [windows, window] of an embedded text."""
    text = (ASSETS / "stories" / name).read_text("utf-8")[: 12 * windows * window]
    ids = AutoTokenizer.from_pretrained(TINY)(text, add_special_tokens=False)["input_ids"]
    return np.asarray(ids[: windows * window], np.int32).reshape(windows, window)


def digest(folder: Path) -> str:
    files = (p.name.encode() + p.read_bytes() for p in sorted(folder.iterdir()))
    return hashlib.sha256(b"".join(files)).hexdigest()


def tied(folder: Path) -> Path:
    """Without a head of its own, in two files, partly rotated and with LongRoPE."""
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    (folder / "model.safetensors").unlink()
    where = {}
    for i in (1, 2):
        part = {k: t for n, (k, t) in enumerate(sorted(tensors.items())) if n % 2 == i - 1}
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors", metadata={"format": "pt"})
        where |= dict.fromkeys(part, f"model-0000{i}-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    rope = {
        "type": "longrope",
        "short_factor": [1.0] * 24,
        "long_factor": [1.0 + i / 2 for i in range(24)],
    }
    config |= {"tie_word_embeddings": True, "partial_rotary_factor": 0.75, "rope_scaling": rope}
    config |= {"original_max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

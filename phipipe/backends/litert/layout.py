"""A folder of LiteRT: which files it has. Light: no toolchain is needed."""

from __future__ import annotations

import json
from pathlib import Path

from phipipe.models import tokenizer_files
from phipipe.models.staging import copy_beside

MODEL = "model.tflite"
BUNDLE = "model.litertlm"


def copy_others(source: Path, out: Path) -> None:
    """The checkpoint's tokenizer and config files as they are; weights stay behind."""
    copy_beside(
        source,
        out,
        leave=lambda name: "safetensors" in name or name.endswith((".tflite", ".litertlm")),
    )


def ends(folder: Path) -> tuple[int, ...]:
    """Ids that end a text: of ``generation_config.json`` where it names any, else of
    ``config.json``."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return tuple(sorted(tokenizer_files.end_ids(ids)))
    return ()

"""The backend's steps in a row, and what stood in their place before: llama.cpp's converter, and
llama.cpp's quantization of the whole file that it wrote. Inside the toolchains."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = {"pure": False, "tensors": [], "output_type": None, "embedding_type": None}


def outline(source: Path, out: Path, kind: str, **params: Any) -> Path:
    """In the toolchain ``torch``: the outline of a checkpoint."""
    from phipipe.backends.llamacpp.outline import outline as step

    out.mkdir(parents=True)
    told = {"type": kind, "name": "small", "config_patch": {}, "context": 512, **params}
    step({"source": source}, out, told)
    return out


def upstream(source: Path, target: Path, kind: str, **params: Any) -> Path:
    """In the toolchain ``torch``: the file that llama.cpp's converter writes itself."""
    import torch

    from phipipe.backends.llamacpp import converter
    from phipipe.models.staging import staged

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copy = staged(source, params.get("config_patch", {}), Path(scratch) / "model")
        model = converter.opened(copy, target, kind, params.get("name", "small"))
        with torch.inference_mode():
            model.write()
    return target


def convert(outlined: Path, source: Path, out: Path, kind: str) -> Path:
    """In the toolchain ``llamacpp``: the checkpoint in floats."""
    from phipipe.backends.llamacpp.convert import convert as step

    out.mkdir(parents=True)
    step({"outline": outlined, "source": source}, out, {"type": kind})
    return out


def quantize(
    outlined: Path,
    source: Path,
    out: Path,
    kind: str,
    inputs: Mapping[str, Path] | None = None,
    **options: Any,
) -> Path:
    """In the toolchain ``llamacpp``: the checkpoint in ``kind``."""
    from phipipe.backends.llamacpp.quantize import quantize as step

    out.mkdir(parents=True)
    given = {"outline": outlined, "source": source, **(inputs or {})}
    step(given, out, {"type": kind, **PLAIN, **options})
    return out


def fresh(folder: Path) -> Path:
    """``folder`` empty."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder

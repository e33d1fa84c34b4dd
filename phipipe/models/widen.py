"""A quantized checkpoint → the plain one that it stands for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from phipipe.models import checkpoints, config_check, finite, quantized, tensor_places, weight_files
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.packed import DTYPES, Packed
from phipipe.models.staging import copy_beside
from phipipe.models.tensor_places import Place
from phipipe.models.unpacking import widen as widened
from phipipe.models.weights import Tensor
from phipipe.steps import Inputs, Params


def widen(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the checkpoint ``inputs["stored"]`` with each of its quantized weights in 16 bits, one
    in memory at a time.

    Raises:
        SourceError: see ``checkpoints.read`` and ``unpacking.widen``.
    """
    stored = inputs["stored"]
    checkpoint = checkpoints.read(stored)
    kept, packed = _tensors(checkpoint)
    places = {
        name: Place(file=t.file, offset=t.offset, dtype=t.dtype, shape=t.shape)
        for name, t in (kept | {name: one.tensor for name, one in packed.items()}).items()
    }
    changed = {name: partial(_bytes, stored, one) for name, one in packed.items()}
    tensor_places.write(out / weight_files.WHOLE, stored, places, changed)
    copy_beside(stored, out, checkpoints.loose_files(stored))
    config = dict(checkpoint.config) | {"architectures": [checkpoint.architecture]}
    key = "dtype" if "dtype" in config else "torch_dtype"
    names = {dtype: name for name, dtype in DTYPES.items()}
    config[key] = names[next(iter(packed.values())).dtype]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    checkpoints.read(out)
    finite.check(out)


def _tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Packed]]:
    """What of the stored ``checkpoint`` is kept as it is, and what is made of pieces."""
    folder = checkpoint.folder
    path = folder / "config.json"
    _, stored = quantized.split(path, config_check.read(path))
    assert stored is not None, "the plan has this step for a quantized checkpoint alone"
    raw = weight_files.read(folder, weight_files.choose(folder))
    packed, kept = quantized.packed(checkpoint, stored, raw)
    return kept, packed


def _bytes(stored: Path, one: Packed) -> bytes:
    raw: bytes = widened(stored, one).contiguous().view(torch.uint8).numpy().tobytes()
    return raw

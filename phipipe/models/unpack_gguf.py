"""A GGUF → the checkpoint that it stands for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gguf
import numpy as np
import torch

from phipipe.errors import SourceError
from phipipe.models import (
    checkpoints,
    gguf_checkpoints,
    gguf_configs,
    gguf_files,
    tensor_places,
    weight_files,
)
from phipipe.models.gguf_files import Header, Tensor
from phipipe.models.tensor_places import Place
from phipipe.sandbox import chat_templates
from phipipe.steps import Inputs, Params

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def unpack(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the one GGUF in ``inputs["stored"]`` as an ordinary checkpoint, one tensor in memory at
    a time.

    Raises:
        SourceError: see ``gguf_checkpoints.read``; or a weight is not finite.
    """
    path = gguf_files.alone_in(inputs["stored"])
    checkpoint = gguf_checkpoints.read(path)
    header = gguf_files.read(path)
    for name, content in gguf_checkpoints.small_files(header, checkpoint.config).items():
        (out / name).write_bytes(content)
    named = {
        gguf_configs.plain_name(gguf_configs.kind_of(header), name): tensor
        for name, tensor in header.tensors.items()
    }
    wide = gguf_checkpoints.widened(header)
    places = {
        name: Place(file=path.name, offset=t.offset, dtype=t.dtype, shape=t.shape)
        for name, t in sorted(wide.items())
    }
    changed = {
        name: partial(_bytes, header, named[name], place.dtype) for name, place in places.items()
    }
    tensor_places.write(out / weight_files.WHOLE, path.parent, places, changed)
    checkpoints.read(out)
    chat_templates.check(out)


def _bytes(header: Header, tensor: Tensor, dtype: str) -> bytes:
    """The tensor as a checkpoint stores it: widened, its rows in the order of the architecture."""
    with header.path.open("rb") as stream:
        stream.seek(tensor.offset)
        raw = np.frombuffer(stream.read(tensor.size_bytes), dtype=np.uint8)
    if tensor.kind in _DTYPES:
        wide = torch.frombuffer(bytearray(raw), dtype=_DTYPES[tensor.kind])
    else:
        kind = getattr(gguf.GGMLQuantizationType, tensor.kind)
        wide = torch.from_numpy(gguf.quants.dequantize(raw, kind).reshape(-1))
    wide = _unturned(header, tensor, wide.reshape(tensor.shape)).to(_DTYPES[dtype]).contiguous()
    if not bool(torch.isfinite(wide).all()):
        raise SourceError(f"the original has weights that are no numbers in `{tensor.name}`")
    stored: bytes = wide.view(torch.uint8).numpy().tobytes()
    return stored


def _unturned(header: Header, tensor: Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys: the converter puts the two halves of a head side by side, since
    llama.cpp turns neighbours where transformers turns halves."""
    part = tensor.name.split(".")[-2]
    if not gguf_configs.kind_of(header).turned or part not in ("attn_q", "attn_k"):
        return wide
    heads = header.settings["llama.attention.head_count"]
    if part == "attn_k":
        heads = header.settings.get("llama.attention.head_count_kv", heads)
    rows = len(wide)
    pairs = wide.reshape(heads, rows // heads // 2, 2, *wide.shape[1:])
    return pairs.swapaxes(1, 2).reshape(wide.shape)

"""A GGUF as a checkpoint: the shape that rules see, from its header alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from phipipe.models import (
    checkpoints,
    config_check,
    gguf_configs,
    gguf_files,
    gguf_settings,
    gguf_tokenizers,
    layout_check,
    layouts,
    remarks,
    views,
)
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.gguf_files import Header
from phipipe.models.packed import DTYPES
from phipipe.models.remarks import Remark
from phipipe.models.weights import DTYPE_BITS, Tensor
from phipipe.steps import Json

PLAIN = ("F32", "F16", "BF16")


def read(path: Path, size: int | None = None) -> Checkpoint:
    """What the model in the GGUF ``path`` is, once it is widened; ``size``: see
    ``gguf_files.read``.

    Raises:
        SourceError: it is no GGUF, or of a model that is not read from one; says why.
    """
    header = gguf_files.read(path, size)
    gguf_configs.kind_of(header)
    gguf_settings.check(header)
    config = gguf_configs.config_of(header)
    config_check.check(path, config)
    kind = gguf_tokenizers.check(header)
    tensors = widened(header)
    shape = checkpoints.of_config(config, kind)
    layout_check.check(path, shape.architecture, layouts.sizes_of(shape, tensors), tensors)
    kinds = Counter(t.kind for t in header.tensors.values() if len(t.shape) == 2)
    title = f"GGUF, {kinds.most_common(1)[0][0]}"
    packed = any(kind not in PLAIN for kind in kinds)
    return dataclasses.replace(
        shape,
        folder=path,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        normal_form=gguf_tokenizers.normal_form(header),
        quantized=title if packed else None,
        remarks=(*((remarks.of("W40", title),) if packed else ()), *_unknown_ends(header)),
    )


def _unknown_ends(header: Header) -> list[Remark]:
    """Tokens at which a text ends and that the model does not have."""
    rows = header.tensors["token_embd.weight"].shape[0]
    ids = [header.settings.get(f"tokenizer.ggml.{name}_token_id") for name in gguf_configs.ENDS]
    beyond = [f"{number} of {header.path.name}" for number in ids if not 0 <= (number or 0) < rows]
    return [remarks.of("W07", *beyond)] if beyond else []


def small_files(header: Header, config: Mapping[str, Json]) -> dict[str, bytes]:
    """Names of the files beside the weights, with ``config`` of the model in the file, and their
    content.

    Raises:
        SourceError: see ``gguf_tokenizers.check``.
    """
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    told: dict[str, Json | bytes] = {
        "config.json": dict(config),
        "generation_config.json": ids,
        **gguf_tokenizers.files(header),
    }
    return {
        name: content
        if isinstance(content, bytes)
        else (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        for name, content in told.items()
    }


def with_files(checkpoint: Checkpoint, cache: Path, size: int | None = None) -> Checkpoint:
    """``checkpoint``, read from a GGUF, in a folder in the ``cache`` where a plan can look at its
    small files as at any other's; ``size``: see ``gguf_files.read``.

    Raises:
        SourceError: see ``small_files``.
        StoreError: the cache cannot be written.
    """
    path = checkpoint.folder
    files = small_files(gguf_files.read(path, size), checkpoint.config)

    def write(out: Path) -> None:
        for name, content in files.items():
            (out / name).write_bytes(content)

    return dataclasses.replace(
        checkpoint, folder=views.kept(cache / "hub" / "gguf", path.name, write)
    )


def widened(header: Header) -> dict[str, Tensor]:
    """The tensors of the checkpoint that the file stands for, by their names there."""
    kind = gguf_configs.kind_of(header)
    wide = DTYPES[gguf_configs.dtype_of(header)]
    found = {}
    for tensor in header.tensors.values():
        if tensor.name in gguf_configs.FACTORS:
            continue
        name = gguf_configs.plain_name(kind, tensor.name)
        dtype = tensor.kind if tensor.kind in PLAIN else wide
        one = Tensor(
            name=name,
            file=header.path.name,
            dtype=dtype,
            shape=tensor.shape,
            offset=tensor.offset,
            size_bytes=0,
        )
        size = one.elements * DTYPE_BITS[dtype] // 8
        found[name] = dataclasses.replace(one, size_bytes=size)
    return found

"""Weights of a checkpoint: which files are the model's, and what their safetensors headers say.

Headers are a stranger's JSON. What comes out of here is bounded, lies in its file without holes or
overlaps, and has names that can be printed. No weight is read.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from phipipe.errors import SourceError
from phipipe.files import json_files

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
# Bits per element of safetensors dtypes (safetensors' own table).
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    ),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# Bounds: the largest headers of the field have some 2,000 tensors and 300 kB, the largest indexes
# 100,000 and 9 MB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_INDEX_BYTES = 12 * 2**20
MAX_RANK, MAX_ELEMENTS, MAX_NAME = 8, 2**44, 300
_AGAIN = "download or copy it again"
_ONE_SAVE = "take the index and all its files from one save"
_SHARD = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")
_FILE = re.compile(r"[^/\\:\x00-\x1f]{1,200}\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a header says of a tensor; ``offset`` is in bytes from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of the safetensors files and indexes in a folder, those that are the model, and the others.

    ``places``: tensor → file, as the index says; empty without one.
    """

    files: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def choose(folder: Path) -> Choice:
    """Tell the model's files in ``folder`` from what lies beside them.

    Raises:
        SourceError: there is no model, none that is complete, or more than one.
    """
    present = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file())
    _refuse_adapter(folder, present)
    indexes = {p.name for p in folder.glob("*.safetensors.index.json") if p.is_file()}
    if INDEX in indexes:
        places = _places(folder / INDEX)
        named = tuple(sorted(set(places.values())))
        _refuse_missing(folder, named, present)
        if WHOLE in present and WHOLE not in named:
            raise SourceError(
                f"`{folder}` holds two models: `{WHOLE}`, and `{named[0]}` with the others that "
                f"`{INDEX}` names; "
                "some tools would read the one, some the other",
                hint=f"delete `{WHOLE}`, or the index with its files: the one that is older",
            )
        return Choice(files=named, ignored=_rest(present, named, indexes - {INDEX}), places=places)
    if WHOLE in present:
        return Choice(files=(WHOLE,), ignored=_rest(present, (WHOLE,), indexes))
    raise _nameless(folder, present)


def _rest(present: Iterable[str], chosen: Iterable[str], indexes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*present, *indexes} - set(chosen)))


def _refuse_adapter(folder: Path, present: list[str]) -> None:
    """A LoRA adapter alone is no model; beside a model, nothing says whether it belongs in."""
    parts = sorted(p.name for p in folder.glob("adapter_model*") if p.is_file())
    parts += [ADAPTER] if (folder / ADAPTER).is_file() else []
    if not parts:
        return
    full = [name for name in present if name not in parts]
    hint = "merge it into its model (peft's `merge_and_unload`), save that, and give its folder"
    if full:
        raise SourceError(
            f"`{folder}` holds a model (`{full[0]}`) and a LoRA adapter beside it (`{parts[0]}`): "
            "nothing says whether the adapter belongs to what is built",
            hint=f"{hint}; or take the adapter's files away",
        )
    told = json_files.read_object(folder / ADAPTER, 2**20) if (folder / ADAPTER).is_file() else {}
    base = told.get("base_model_name_or_path")
    of = f" of `{json_files.shown(base)}`" if isinstance(base, str) and base else ""
    raise SourceError(f"`{folder}` is a LoRA adapter{of} (`{parts[0]}`), not a model", hint=hint)


def _refuse_missing(folder: Path, named: Iterable[str], present: list[str]) -> None:
    for name in named:
        if name not in present:
            raise SourceError(
                f"`{folder}` is incomplete: its index names `{name}`, which is not there",
                hint=f"if `{WHOLE}` is the whole model, delete `{INDEX}`"
                if WHOLE in present
                else _AGAIN,
            )


def _nameless(folder: Path, present: list[str]) -> SourceError:
    """Why a folder with neither an index nor `model.safetensors` holds no model."""
    shards = [name for name in present if _SHARD.fullmatch(name)]
    if shards:
        return SourceError(
            f"`{folder}` has a part of a model, `{json_files.shown(shards[0])}`, but not the "
            f"index that names all "
            f"parts, `{INDEX}`",
            hint="copy or download the index too",
        )
    if present:
        return SourceError(
            f"`{folder}` has no `{WHOLE}`, the name by which tools find a model's weights, but "
            f"`{json_files.shown(present[0])}`",
            hint="save the model again with transformers; or rename the file, if it is the "
            "whole model",
        )
    for kind, what, hint in (
        (
            ("*.gguf",),
            "GGUF files, which are converted already",
            "run those with llama.cpp or Ollama as they are",
        ),
        (
            PICKLES,
            "pickles only, and loading those can run code",
            "save the model again with safetensors",
        ),
    ):
        found = sorted(p.name for pattern in kind for p in folder.glob(pattern))
        if found:
            return SourceError(
                f"`{folder}` holds its weights as {what} (`{json_files.shown(found[0])}`)",
                hint=hint
                if kind is PICKLES
                else f"{hint}; or give the folder of the original, with its safetensors",
            )
    return SourceError(
        f"`{folder}` has no weights: no `*.safetensors` file", hint="give one that has them"
    )


def _places(path: Path) -> dict[str, str]:
    """Tensor → file, as the index in ``path`` has it."""
    found = json_files.read_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise SourceError(f"`{path}` has no `weight_map`, the table of tensors and their files")
    for name, file in found.items():
        _check_name(path, name)
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not file.isprintable():
            raise SourceError(
                f"`{path}` is malformed: the file of `{name}` is no name of a safetensors file",
                hint=_ONE_SAVE,
            )
    return found


def read(folder: Path, choice: Choice, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """The tensors of all files of ``choice`` by name. ``sizes``: see ``models.read``.

    Raises:
        SourceError: a header is corrupt, or the files disagree.
    """
    found: dict[str, Tensor] = {}
    for file in choice.files:
        for tensor in tensors(folder / file, (sizes or {}).get(file)):
            if tensor.name in found:
                other = found[tensor.name].file
                raise SourceError(
                    f"tensor `{tensor.name}` lies in `{folder / other}` and in `{file}`",
                    hint=_ONE_SAVE,
                )
            found[tensor.name] = tensor
    for name, file in choice.places.items():
        if name in found and found[name].file != file:
            raise SourceError(
                f"`{folder / INDEX}` says that `{name}` lies in `{file}`; `{found[name].file}` "
                f"has it",
                hint=_ONE_SAVE,
            )
        if name not in found:
            raise SourceError(
                f"`{folder / INDEX}` says that `{name}` lies in `{file}`, which does not have it",
                hint=_ONE_SAVE,
            )
    if not any(tensor.elements for tensor in found.values()):
        raise SourceError(f"`{folder}` has no weights: its safetensors files hold no tensor")
    return found


def tensors(path: Path, size: int | None = None) -> list[Tensor]:
    """What the header of ``path`` says, in the order of the data; it fits the file's ``size`` to
    the byte.

    Raises:
        SourceError: it is no safetensors file, is cut short, or its header is corrupt or beyond all
            bounds.
    """
    size = path.stat().st_size if size is None else size
    raw = _header(path, size)
    try:
        header = json_files.parse(raw, path)
    except SourceError as error:
        raise SourceError(
            f"`{path}` has a corrupt safetensors header: {error.message}", hint=_AGAIN
        ) from None
    if not isinstance(header, dict):
        raise SourceError(f"`{path}` has a corrupt safetensors header: it is no JSON object")
    about = header.pop("__metadata__", None)
    about = {} if about is None else about
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise SourceError(
            f"`{path}` has a corrupt safetensors header: `__metadata__` is no table of texts"
        )
    start = 8 + len(raw)
    found = sorted(
        (_tensor(path, name, entry, start) for name, entry in header.items()),
        key=lambda tensor: (tensor.offset, tensor.size_bytes),
    )
    end = start
    for tensor in found:
        if tensor.offset != end:
            _odd(
                path,
                tensor.name,
                "does not lie where its header says: there is a hole or an overlap before it",
            )
        end += tensor.size_bytes
    if end != size:
        raise SourceError(
            f"`{path}` is cut short or padded: its header describes {end - start} bytes of "
            f"weights, the file has "
            f"{size - start}",
            hint=_AGAIN,
        )
    return found


def _header(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        prefix = stream.read(8)
        json_files.refuse_pointer(prefix + stream.peek(120)[:120] if size < 1024 else prefix, path)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= max(size - 8, 0):
            raise SourceError(
                f"`{path}` is not a safetensors file, or is cut short ({size} bytes)", hint=_AGAIN
            )
        if length > MAX_HEADER_BYTES:
            raise SourceError(
                f"`{path}` has a safetensors header of {length} bytes; at most "
                f"{MAX_HEADER_BYTES} make sense"
            )
        raw = stream.read(length)
    if len(raw) != length:
        raise SourceError(
            f"`{path}` is not a safetensors file, or is cut short ({size} bytes)", hint=_AGAIN
        )
    return raw


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    _check_name(path, name)
    if not isinstance(entry, dict):
        _odd(path, name, "has no dtype, shape and place")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _odd(
            path,
            name,
            f"has the dtype `{json_files.shown(str(dtype))}`, which is none of safetensors'",
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(n) for n in shape):
        _odd(
            path,
            name,
            "has a shape that is none: not a few whole numbers, none of them negative or huge",
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
    ):
        _odd(path, name, "has `data_offsets` that are not a start and an end")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        _odd(path, name, "has more elements than any model")
    first, last = offsets
    if (last - first) * 8 != elements * DTYPE_BITS[dtype]:
        _odd(
            path,
            name,
            f"does not lie where its header says: {last - first} bytes are not {elements} × "
            f"{dtype}",
        )
    return Tensor(
        name=name,
        file=path.name,
        dtype=dtype,
        shape=tuple(shape),
        offset=start + first,
        size_bytes=last - first,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _check_name(path: Path, name: str) -> None:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise SourceError(
            f"`{path}` is malformed: `{json_files.shown(name)}` is no name of a tensor",
            hint="save the model again, or take the original",
        )


def _odd(path: Path, name: str, what: str) -> NoReturn:
    raise SourceError(f"`{path}` is corrupt: tensor `{name}` {what}", hint=_AGAIN)


def same_bytes(folder: Path, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same dtype and shape hold the same, read piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with (folder / one.file).open("rb") as first, (folder / other.file).open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.size_bytes
        while left:
            piece = first.read(min(left, 2**20))
            if not piece or piece != second.read(len(piece)):
                return False
            left -= len(piece)
    return True

"""Checkpoints whose weights were quantized before: how they are stored, and the plain model that
they widen to.

Everything here comes from ``config.json`` and headers. A format is read where each weight is a
whole number or a small float times a scale, so that its value is known to the bit; the step
``models/widen`` computes it. All other formats are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import family, layouts, packed_formats, remarks
from phipipe.models.layouts import LAYOUTS, Shape
from phipipe.models.packed import DTYPES, Packed, Pieces
from phipipe.models.remarks import Remark
from phipipe.models.weights import Tensor
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

KEYS = ("quantization_config", "quantization")
_NAMES = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mlx": "MLX",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
    "auto-round": "AutoRound",
}
MAX_BITS = 64
# What a runtime rounds besides weights, and what is of no use to one that does not.
IDLE = (".input_scale", ".input_zero_point", ".output_scale", ".input_global_scale")


@dataclass(frozen=True, kw_only=True)
class Format:
    """How weights are stored: ``kind`` is the name in the config, ``title`` the one for people,
    ``dtype`` (safetensors') that of the model where scales have none of their own."""

    kind: str
    title: str
    settings: Mapping[str, Json]
    dtype: str


def split(path: Path, config: Mapping[str, Json]) -> tuple[dict[str, Json], Format | None]:
    """``config``, the content of ``path``, as it is of the plain model; and how that is stored,
    None where it is plain already.

    Raises:
        SourceError: the format is one that is not read; names it.
    """
    # converters and transformers take the key for a format, and fail
    if not config.get(KEYS[0], True):
        raise SourceError(f"`{path}` has `{KEYS[0]}` with nothing in it", hint="remove the key")
    key = next((key for key in KEYS if config.get(key)), None)
    if key is None:
        return dict(config), None
    settings = config[key]
    if not isinstance(settings, dict):
        raise SourceError(f"`{path}` is malformed: `{key}` is no table of settings")
    plain = {name: value for name, value in config.items() if name not in KEYS}
    kind = _kind(settings)
    title = _title(kind, settings)
    odd = packed_formats.problem(kind, settings)
    if odd:
        raise SourceError(
            f"`{path}` is of a model that is quantized already (`{key}`: {title}), and {odd}",
            hint=f"{original_of(config)}; if these are merged weights in 16 bits, remove the key",
        )
    dtype = config.get("torch_dtype") or config.get("dtype")
    stored = DTYPES.get(str(dtype), "BF16")
    return plain, Format(kind=kind, title=title, settings=settings, dtype=stored)


def _kind(settings: Mapping[str, Json]) -> str:
    kind = settings.get("quant_method")
    if isinstance(kind, str):
        return kind
    return "mlx" if "group_size" in settings else ""


def _title(kind: str, settings: Mapping[str, Json]) -> str:
    name = _NAMES.get(kind) or json_files.shown(kind) or "in an unnamed format"
    bits = settings.get("bits")
    if settings.get("load_in_4bit") is True:
        bits = 4
    elif settings.get("load_in_8bit") is True:
        bits = 8
    if kind == "compressed-tensors" and isinstance(settings.get("format"), str):
        return f"{name}, {json_files.shown(settings['format'])}"
    whole = isinstance(bits, int) and not isinstance(bits, bool) and 0 < bits <= MAX_BITS
    return f"{name}, {bits} bits" if whole else name


def original_of(config: Mapping[str, Json]) -> str:
    """Where the weights in 16 bits are, as far as the config tells."""
    try:
        member = family.of(config)
    except (TypeError, IndexError):
        member = None
    if member:
        return (
            f"start from the original in 16 bits, such as "
            f"{' or '.join(f'`{repo}`' for repo in member.repos[:2])}"
        )
    return "start from the original in 16 bits, which the model's page names"


def widened(
    shape: Checkpoint, stored: Format | None, raw: dict[str, Tensor]
) -> tuple[Checkpoint, dict[str, Tensor], list[Remark]]:
    """``shape`` with the sizes of the widened model, whose tensors are made of the headers ``raw``,
    those tensors, and remarks on them; they are ``raw`` where the model is stored plainly.

    Raises:
        SourceError: as ``packed``.
    """
    if stored is None:
        return _counted(shape, raw), raw, []
    parts, plain = packed(shape, stored, raw)
    notes = [remarks.of("W40", stored.title)]
    idle = len(plain) + sum(len(one.parts) for one in parts.values()) < len(raw)
    if idle or packed_formats.rounds_more(stored.kind, stored.settings):
        notes.append(remarks.of("W41", stored.title))
    tensors = plain | {name: one.tensor for name, one in parts.items()}
    return replace(_counted(shape, tensors), quantized=stored.title), tensors, notes


def _counted(shape: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return replace(
        shape,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
    )


def packed(
    shape: Checkpoint, stored: Format, raw: Mapping[str, Tensor]
) -> tuple[dict[str, Packed], dict[str, Tensor]]:
    """Of a model of ``shape`` the weights that lie in ``raw`` in pieces, and the tensors that lie
    there as they are.

    Raises:
        SourceError: no weight is in pieces; a piece is missing, or of a dtype or shape that its
            weight cannot have; nobody knows which tensors the architecture has.
    """
    layout = LAYOUTS.get(shape.architecture)
    if layout is None or layout.others:
        known = ", ".join(name for name, layout in LAYOUTS.items() if not layout.others)
        raise SourceError(
            f"`{shape.folder}` is of a quantized {json_files.shown(shape.architecture)} "
            f"({stored.title}); quantized weights are read of {known}",
            hint="start from the original in 16 bits",
        )
    wanted = layouts.wanted(layout, layouts.sizes_of(shape, raw))
    found = {name: _read(shape, stored, raw, name, wanted[name]) for name in _matrices(wanted)}
    parts = {name: one for name, one in found.items() if one}
    if not parts:
        raise SourceError(
            f"`{shape.folder / 'config.json'}` is of a model that is quantized already "
            f"({stored.title}), and none of its weights are",
            hint="if these are merged weights in 16 bits, remove the key; else start from the "
            "original in 16 bits",
        )
    used = {tensor.name for one in parts.values() for tensor in one.parts.values()}
    stems = [name.removesuffix(".weight") for name in parts]
    used |= {stem + suffix for stem in stems for suffix in IDLE}
    return parts, {name: tensor for name, tensor in raw.items() if name not in used}


def _matrices(wanted: Mapping[str, Shape]) -> list[str]:
    return [n for n, shape in wanted.items() if n.endswith(".weight") and len(shape) == 2]


def _read(
    shape: Checkpoint, stored: Format, raw: Mapping[str, Tensor], name: str, size: Shape
) -> Packed | None:
    pieces = Pieces(shape.folder, raw, name, size)
    return packed_formats.read(stored.kind, pieces, stored.settings, stored.dtype)

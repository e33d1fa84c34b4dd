"""Formats of whole numbers packed along a weight's input or output: GPTQ, AWQ, MLX.

- GPTQ (AutoGPTQ, GPTQModel): codes along the input in 32-bit words, zero points one too low in
  version 1, ``g_idx`` the group of each input.
- AWQ (AutoAWQ's GEMM): codes along the output, eight in a word in the order of its kernel.
- MLX: codes along the input, scale and bias by group.
"""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models.packed import GROUPS, SCALES, Packed, Pieces, kept, shown
from phipipe.steps import Json

Settings = Mapping[str, Json]

# --- GPTQ


def gptq_problem(settings: Settings) -> str:
    """Why GPTQ weights of these settings cannot be read; "" if they can."""
    form = settings.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        return f"its `checkpoint_format` `{shown(form)}` is not read, only gptq and gptq_v2"
    if not _is_among(settings.get("bits"), (2, 3, 4, 8)):
        return f"`bits` {shown(settings.get('bits'))} are not read, only 2, 3, 4 and 8"
    size = settings.get("group_size", -1)
    if not _is_among(size, (-1, *GROUPS)):
        return f"its `group_size` is {shown(size)}"
    return ""


def gptq(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """A GPTQ weight, None if it is none."""
    if not pieces.has(".qweight"):
        return None
    rows, columns = pieces.shape
    codes = pieces.take(".qweight", ("I32",))
    bits = _bits(pieces, settings, codes.elements, (2, 3, 4, 8))
    pieces.take(".qweight", ("I32",), (columns * bits // 32, rows))
    scales = pieces.take(".scales", SCALES)
    groups = _groups(pieces, settings, scales.shape, 0)
    pieces.take(".scales", SCALES, (groups, rows))
    parts = {
        "codes": codes,
        "scales": scales,
        "zeros": pieces.take(".qzeros", ("I32",), (groups, -(-rows * bits // 32))),
    }
    if pieces.has(".g_idx"):
        parts["groups"] = pieces.take(".g_idx", ("I32", "I64"), (columns,))
    elif settings.get("desc_act") and groups > 1:
        pieces.refuse(f"its order is its own (`desc_act`), and `{pieces.stem}.g_idx` is missing")
    first = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=kept(scales.dtype, dtype),
        rule="gptq",
        bits=bits,
        parts=parts,
        facts={"zero": first},
    )


def _bits(pieces: Pieces, settings: Settings, words: int, among: tuple[int, ...]) -> int:
    """Bits of a code, as 32-bit ``words`` of a weight say; the config's, unless it has some for
    parts of the model."""
    rows, columns = pieces.shape
    bits = words * 32 // (rows * columns)
    known = settings.get("bits")
    varied = settings.get("dynamic") or any(isinstance(v, dict) for v in settings.values())
    if bits not in among or words * 32 != bits * rows * columns or (not varied and bits != known):
        pieces.refuse(f"{words} words do not hold codes of {shown(known)} bits")
    return bits


def _groups(pieces: Pieces, settings: Settings, shape: tuple[int, ...], axis: int) -> int:
    """Groups along the input, as the scales' ``shape`` says; as the config does, unless varied."""
    columns = pieces.shape[1]
    groups = shape[axis] if len(shape) == 2 else 0
    size = settings.get("group_size", -1)
    varied = settings.get("dynamic") or any(isinstance(v, dict) for v in settings.values())
    wanted = 1 if size in (-1, None) else -(-columns // max(int(size), 1))
    fits = 0 < groups <= columns and (varied or groups == wanted)
    if not fits:
        pieces.refuse(f"it has {groups} groups of scales, not {wanted}")
    return groups


def _is_among(value: Json, values: tuple[int, ...]) -> bool:
    return type(value) is int and value in values


# --- AWQ


def awq_problem(settings: Settings) -> str:
    """Why AWQ weights of these settings cannot be read; "" if they can."""
    version = settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        return f"its `version` `{shown(version)}` is not read, only gemm"
    if settings.get("bits") != 4:
        return f"`bits` {shown(settings.get('bits'))} are not read, only 4"
    if not settings.get("zero_point", True):
        return "it has no zero points (`zero_point`), which runtimes read apart"
    size = settings.get("group_size", 128)
    return "" if _is_among(size, (-1, *GROUPS)) else f"its `group_size` is {shown(size)}"


def awq(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """An AWQ weight, None if it is none."""
    if not pieces.has(".qweight"):
        return None
    rows, columns = pieces.shape
    if rows % 8:
        pieces.refuse("its rows are no multiple of 8")
    codes = pieces.take(".qweight", ("I32",), (columns, rows // 8))
    scales = pieces.take(".scales", SCALES)
    groups = _groups(pieces, {"group_size": 128, **settings}, scales.shape, 0)
    pieces.take(".scales", SCALES, (groups, rows))
    parts = {
        "codes": codes,
        "scales": scales,
        "zeros": pieces.take(".qzeros", ("I32",), (groups, rows // 8)),
    }
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=kept(scales.dtype, dtype),
        rule="awq",
        bits=4,
        parts=parts,
    )


# --- MLX


def mlx_problem(settings: Settings) -> str:
    """Why MLX weights of these settings cannot be read; "" if they can."""
    mode = settings.get("mode", "affine")
    if mode != "affine":
        return f"its `mode` `{shown(mode)}` is not read, only affine"
    if not _is_among(settings.get("bits"), _MLX_BITS):
        return f"`bits` {shown(settings.get('bits'))} are not read, only 2 to 6 and 8"
    size = settings.get("group_size")
    return "" if _is_among(size, GROUPS) else f"its `group_size` is {shown(size)}"


_MLX_BITS = (2, 3, 4, 5, 6, 8)


def mlx(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """An MLX weight, None if it is none."""
    if not pieces.has(".scales"):
        return None
    rows, columns = pieces.shape
    codes = pieces.take(".weight", ("U32",))
    bits = _bits(pieces, settings, codes.elements, _MLX_BITS)
    scales = pieces.take(".scales", SCALES)
    groups = _groups(pieces, settings, scales.shape, 1)
    if columns % groups:
        pieces.refuse(f"{columns} columns are not {groups} groups of one size")
    parts = {
        "codes": pieces.take(".weight", ("U32",), (rows, columns * bits // 32)),
        "scales": pieces.take(".scales", SCALES, (rows, groups)),
        "biases": pieces.take(".biases", (scales.dtype,), (rows, groups)),
    }
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=scales.dtype,
        rule="affine",
        bits=bits,
        parts=parts,
    )

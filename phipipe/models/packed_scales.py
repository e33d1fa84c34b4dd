"""Formats of small numbers that lie as they are, with scales beside them.

- compressed-tensors (vLLM): codes along the input, signed; 8-bit whole numbers; FP8.
- FP8 (DeepSeek, vLLM): E4M3 with a scale for the tensor, a row or a block.
- bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314): 4-bit tables, scales by block, which may be
  quantized too; LLM.int8().
"""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.models.packed import GROUPS, SCALES, Packed, Pieces, kept, shown
from phipipe.models.weights import Tensor
from phipipe.steps import Json

Settings = Mapping[str, Json]
FP8 = "F8_E4M3"
_NF4_STATE, _FP4_STATE = (f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))

# --- compressed-tensors


def config_groups(settings: Settings) -> list[Mapping[str, Json]]:
    """The groups of weights that the settings describe."""
    groups = settings.get("config_groups")
    groups = groups if isinstance(groups, dict) else {}
    return [group for group in groups.values() if isinstance(group, dict)]


_COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


def compressed_problem(settings: Settings) -> str:
    """Why compressed-tensors weights of these settings cannot be read; "" if they can."""
    groups = config_groups(settings)
    forms = [settings.get("format"), *(group.get("format") for group in groups)]
    for form in forms:
        if form is not None and form not in (*_COMPRESSED, "mixed-precision"):
            return f"its `format` `{shown(form)}` is not read, only {', '.join(_COMPRESSED)}"
    if settings.get("quantization_status", "compressed") != "compressed":
        return "it was saved before it was compressed"
    for key in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        if _is_more(settings.get(key)):
            return f"it has a `{key}`, which is not read"
    return _scheme_problem(groups)


def _is_more(value: Json) -> bool:
    """Whether a part of the settings asks for something; ``format: dense`` is nothing."""
    if isinstance(value, dict) and value.get("format") == "dense":
        return False
    return bool(value.get("config_groups")) if _has(value, "config_groups") else bool(value)


def _has(value: Json, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _scheme_problem(groups: list[Mapping[str, Json]]) -> str:
    schemes = [group.get("weights") for group in groups]
    if not any(schemes):
        return "it names no scheme for weights"
    for scheme in schemes:
        scheme = {} if scheme is None else scheme
        if not isinstance(scheme, dict):
            return f"its scheme for weights is `{shown(scheme)}`"
        kind, bits = scheme.get("type", "int"), scheme.get("num_bits", 8)
        if (kind, bits) not in (("int", 2), ("int", 4), ("int", 8), ("float", 8)):
            return f"weights of {shown(bits)} bits of the type `{shown(kind)}` are not read"
        if scheme.get("strategy", "tensor") not in ("tensor", "channel", "group", "block"):
            return f"its strategy `{shown(scheme.get('strategy'))}` is not read"
    return ""


def compressed(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """A compressed-tensors weight, None if it is none."""
    if pieces.has(".weight_packed"):
        _check_complete(pieces, settings)
        return _compressed_words(pieces, dtype)
    if not pieces.has(".weight", "I8", FP8):
        return None
    kind = "I8" if pieces.has(".weight", "I8") else FP8
    codes = pieces.take(".weight", (kind,), pieces.shape)
    scales = pieces.take(".weight_scale", SCALES)
    parts = {"codes": codes, "scales": scales}
    if kind == "I8":
        _check_complete(pieces, settings)
    if pieces.has(".weight_zero_point") and kind == "I8":
        parts["zeros"] = pieces.take(".weight_zero_point", ("I8",), scales.shape)
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=kept(scales.dtype, dtype),
        rule="scaled",
        bits=8,
        parts=parts,
        facts={"block": _block(pieces, scales.shape)},
    )


def _check_complete(pieces: Pieces, settings: Settings) -> None:
    """Refuse a weight without a piece that every scheme of the settings asks for."""
    schemes = [group["weights"] for group in config_groups(settings) if group.get("weights")]
    wanted = {
        ".weight_zero_point": all(scheme.get("symmetric", True) is False for scheme in schemes),
        ".weight_g_idx": all(scheme.get("actorder") in ("group", "dynamic") for scheme in schemes),
    }
    for piece, needed in wanted.items():
        if needed and not pieces.has(piece):
            pieces.refuse(f"`{pieces.stem}{piece}` is missing, as its settings have it")


def _compressed_words(pieces: Pieces, dtype: str) -> Packed:
    rows, columns = pieces.shape
    codes = pieces.take(".weight_packed", ("I32",))
    bits = codes.elements * 32 // (rows * columns)
    if bits not in (2, 4, 8):
        pieces.refuse(f"{codes.elements} words do not hold codes of 2, 4 or 8 bits")
    pieces.take(".weight_packed", ("I32",), (rows, -(-columns * bits // 32)))
    scales = pieces.take(".weight_scale", SCALES)
    groups = scales.shape[1] if len(scales.shape) == 2 else 0
    if not 0 < groups <= columns:
        pieces.refuse(f"`{scales.name}` has no scale for each row and group")
    parts = {
        "codes": codes,
        "scales": pieces.take(".weight_scale", SCALES, (rows, groups), (1, 1)),
        "shape": pieces.take(".weight_shape", ("I64", "I32"), (2,)),
    }
    if pieces.has(".weight_zero_point"):
        packed = (-(-rows * bits // 32), groups)
        parts["zeros"] = pieces.take(".weight_zero_point", ("I32",), packed)
    if pieces.has(".weight_g_idx"):
        parts["groups"] = pieces.take(".weight_g_idx", ("I32", "I64"), (columns,))
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=kept(scales.dtype, dtype),
        rule="words",
        bits=bits,
        parts=parts,
    )


# --- FP8


def fp8_problem(settings: Settings) -> str:
    """Why FP8 weights of these settings cannot be read; "" if they can."""
    form = settings.get("fmt", "e4m3")
    return "" if form == "e4m3" else f"its `fmt` `{shown(form)}` is not read, only e4m3"


def fp8(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """An FP8 weight, None if it is none."""
    if not pieces.has(".weight", FP8):
        return None
    codes = pieces.take(".weight", (FP8,), pieces.shape)
    suffix = ".weight_scale_inv" if pieces.has(".weight_scale_inv") else ".weight_scale"
    scales = pieces.take(suffix, SCALES)
    block = _block(pieces, scales.shape, settings.get("weight_block_size"))
    return Packed(
        name=pieces.name,
        shape=pieces.shape,
        dtype=kept(scales.dtype, dtype),
        rule="scaled",
        bits=8,
        parts={"codes": codes, "scales": scales},
        facts={"block": block},
    )


def _block(pieces: Pieces, shape: tuple[int, ...], said: Json = None) -> list[int]:
    """Rows and columns that share a scale: of scales of this ``shape``, or as the config says."""
    rows, columns = pieces.shape
    if shape in ((), (1,), (1, 1)):
        return [rows, columns]
    if shape in ((rows,), (rows, 1)):
        return [1, columns]
    if len(shape) != 2 or not all(shape):
        pieces.refuse("its scales are for neither the tensor, rows nor blocks")
    sizes = [said] if isinstance(said, list) else [[n, n] for n in GROUPS]
    sizes += [[1, n] for n in GROUPS]
    whole = [b for b in sizes if len(b) == 2 and all(type(n) is int and n > 0 for n in b)]
    fitting = [b for b in whole if shape == (-(-rows // b[0]), -(-columns // b[1]))]
    if not fitting:
        pieces.refuse("its scales do not divide it into blocks")
    return [int(n) for n in fitting[0]]


# --- bitsandbytes


def bnb_problem(settings: Settings) -> str:
    """Why bitsandbytes weights of these settings cannot be read; "" if they can."""
    if settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True:
        return ""
    return "it says neither `load_in_4bit` nor `load_in_8bit`"


def bnb(pieces: Pieces, settings: Settings, dtype: str) -> Packed | None:
    """A bitsandbytes weight, None if it is none."""
    rows, columns = pieces.shape
    if pieces.has(".weight", "I8"):
        parts = {
            "codes": pieces.take(".weight", ("I8",), pieces.shape),
            "scales": pieces.take(".SCB", ("F32",), (rows,)),
        }
        if pieces.has(".weight_format"):
            parts["form"] = pieces.take(".weight_format", ("U8",), (), (1,))
        rule, bits = "int8", 8
    elif pieces.has(".weight", "U8"):
        parts, rule, bits = _bnb_parts(pieces, -(-rows * columns // 2)), "table", 4
    else:
        return None
    return Packed(
        name=pieces.name, shape=pieces.shape, dtype=dtype, rule=rule, bits=bits, parts=parts
    )


def _bnb_parts(pieces: Pieces, size: int) -> dict[str, Tensor]:
    state = pieces.any_of((_NF4_STATE, _FP4_STATE))
    if state is None:
        pieces.refuse(f"`{pieces.stem}{_NF4_STATE}` is missing")
    if state.dtype != "U8" or not 2 <= state.elements <= 4096:
        pieces.refuse(f"`{state.name}` is no JSON of settings")
    nested = pieces.has(".weight.nested_absmax")
    parts = {
        "codes": pieces.take(".weight", ("U8",), (size, 1), (1, size)),
        "scales": pieces.take(".weight.absmax", ("U8",) if nested else ("F32",)),
        "table": pieces.take(".weight.quant_map", ("F32",), (16,)),
        "state": state,
    }
    if nested:
        parts["outer"] = pieces.take(".weight.nested_absmax", ("F32",))
        parts["outer_table"] = pieces.take(".weight.nested_quant_map", ("F32",), (256,))
    return parts

"""The embedded model as quantizers save it, in each format that phipipe reads, and the values that
its codes and scales stand for. Written from the formats' documents, bit by bit; runs in the
toolchain ``torch``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from phipipe.hub.take import BUILTIN_MODELS

TINY = BUILTIN_MODELS["tiny-phi3"]
GROUP = 32
Parts = dict[str, torch.Tensor]
Quantized = tuple[Parts, torch.Tensor]  # the pieces by their suffixes; the weight they stand for


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes along the last axis as one stream of bits, the lowest first, in 32-bit words."""
    stream = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    raw = np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(raw).view(np.int32))


def rounded(
    weight: torch.Tensor, bits: int, dtype: torch.dtype, groups: torch.Tensor, least: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales (rows, groups) and zero points of ``weight``, by plain rounding."""
    rows, count = len(weight), int(groups.max()) + 1
    scales, zeros = torch.empty(rows, count), torch.empty(rows, count, dtype=torch.int64)
    codes = torch.empty(weight.shape, dtype=torch.int64)
    for group in range(count):
        own = weight[:, groups == group].float()
        low, high = own.amin(1).clamp(max=0), own.amax(1).clamp(min=0)
        scales[:, group] = ((high - low) / (2**bits - 1)).clamp(min=1e-6).to(dtype).float()
        scale = scales[:, group, None]
        zeros[:, group] = (-low / scale[:, 0]).round().clamp(least, 2**bits - 1).long()
        shifted = (own / scale).round().long() + zeros[:, group, None]
        codes[:, groups == group] = shifted.clamp(0, 2**bits - 1)
    return codes, scales.to(dtype), zeros


def product(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Exact in 64 bits, then rounded once to the dtype of the scales."""
    return (codes.double() * scales.double()).to(scales.dtype)


def gptq(bits: int, version: int, act_order: bool = False) -> Callable[[torch.Tensor], Quantized]:
    def quantize(weight: torch.Tensor) -> Quantized:
        columns = weight.shape[1]
        groups = torch.arange(columns) // GROUP
        if act_order:
            groups = groups[torch.randperm(columns)]
        first = 2 - version
        codes, scales, zeros = rounded(weight, bits, torch.float16, groups, first)
        parts = {
            ".qweight": words(codes, bits).t(),
            ".qzeros": words((zeros - first).t(), bits),
            ".scales": scales.t(),
            ".g_idx": groups.int(),
        }
        return parts, product(codes - zeros[:, groups], scales[:, groups])

    return quantize


def awq(weight: torch.Tensor) -> Quantized:
    groups = torch.arange(weight.shape[1]) // GROUP
    codes, scales, zeros = rounded(weight, 4, torch.float16, groups)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(values: torch.Tensor) -> torch.Tensor:
        swapped = values.reshape(len(values), -1, 8)[:, :, order].reshape(len(values), -1)
        return words(swapped, 4)

    parts = {".qweight": packed(codes.t()), ".qzeros": packed(zeros.t()), ".scales": scales.t()}
    return parts, product(codes - zeros[:, groups], scales[:, groups])


def compressed(bits: int, symmetric: bool) -> Callable[[torch.Tensor], Quantized]:
    def quantize(weight: torch.Tensor) -> Quantized:
        groups = torch.arange(weight.shape[1]) // GROUP
        codes, scales, zeros = rounded(weight, bits, torch.bfloat16, groups)
        if symmetric:
            zeros = torch.full_like(zeros, 2 ** (bits - 1))
        parts = {
            ".weight_packed": words(codes, bits),
            ".weight_scale": scales,
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts[".weight_zero_point"] = words(zeros.t(), bits).t()
        return parts, product(codes - zeros[:, groups], scales[:, groups])

    return quantize


def int8(weight: torch.Tensor) -> Quantized:
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight.float() / scales.float()).round().clamp(-128, 127).to(torch.int8)
    return {".weight": codes, ".weight_scale": scales}, product(codes, scales)


def fp8(suffix: str, block: int | None) -> Callable[[torch.Tensor], Quantized]:
    def quantize(weight: torch.Tensor) -> Quantized:
        rows, columns = weight.shape
        if block is None:
            scales = (weight.float().abs().max() / 448).reshape(1)
            spread = scales.reshape(1, 1).expand(rows, columns)
        else:
            scales = torch.rand(-(-rows // block), -(-columns // block)) * 1e-3 + 1e-4
            spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
            spread = spread[:rows, :columns]
        codes = (weight.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        exact = (codes.float() * spread).bfloat16()
        return {".weight": codes, suffix: scales}, exact

    return quantize


def nf4(nested: bool) -> Callable[[torch.Tensor], Quantized]:
    def quantize(weight: torch.Tensor) -> Quantized:
        table = torch.linspace(-1, 1, 16) ** 3
        flat = weight.float().reshape(-1, 64)
        scales = flat.abs().amax(1)
        codes = (flat / scales[:, None].clamp(min=1e-8))[:, :, None].sub(table).abs().argmin(2)
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": list(weight.shape),
        }
        parts = {".weight.quant_map": table}
        if nested:
            outer_table, offset = torch.linspace(-1, 1, 256), float(scales.mean())
            blocks = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256))
            outer = blocks.reshape(-1, 256).abs().amax(1)
            inner = torch.arange(len(scales)) // 256
            near = ((scales - offset) / outer[inner])[:, None] - outer_table
            index = near.abs().argmin(1)
            scales = outer_table[index] * outer[inner] + offset
            parts |= {
                ".weight.absmax": index.to(torch.uint8),
                ".weight.nested_absmax": outer,
                ".weight.nested_quant_map": outer_table,
            }
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        else:
            parts[".weight.absmax"] = scales
        pairs = codes.reshape(-1, 2)
        parts[".weight"] = (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None]
        raw = json.dumps(state).encode()
        parts[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(raw), dtype=torch.uint8)
        return parts, (table[codes] * scales[:, None]).reshape(weight.shape).bfloat16()

    return quantize


def llm_int8(weight: torch.Tensor) -> Quantized:
    largest = weight.float().abs().amax(1)
    codes = (weight.float() * (127 / largest[:, None])).round().to(torch.int8)
    parts = {
        ".weight": codes,
        ".SCB": largest,
        ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return parts, (codes.float() * (largest[:, None] * (1 / 127))).bfloat16()


def affine(bits: int) -> Callable[[torch.Tensor], Quantized]:
    def quantize(weight: torch.Tensor) -> Quantized:
        groups = torch.arange(weight.shape[1]) // GROUP
        codes, scales, zeros = rounded(weight, bits, torch.bfloat16, groups)
        biases = (-zeros * scales.double()).bfloat16()
        exact = codes.double() * scales.double()[:, groups] + biases.double()[:, groups]
        packed = words(codes, bits).view(torch.uint32)
        return {".weight": packed, ".scales": scales, ".biases": biases}, exact.float().bfloat16()

    return quantize


def _weights(kind: str, bits: int, strategy: str) -> dict[str, Any]:
    return {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True}


def _compressed(form: str, scheme: Mapping[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": dict(scheme)}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
    }


def _gptq(bits: int, form: str = "gptq") -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "desc_act": False,
        "checkpoint_format": form,
    }


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS: Mapping[str, tuple[dict[str, Any], Callable[[torch.Tensor], Quantized]]] = {
    **{f"gptq-{bits}": (_gptq(bits), gptq(bits, 1)) for bits in (2, 3, 4, 8)},
    "gptq-v2": (_gptq(4, "gptq_v2"), gptq(4, 2)),
    "gptq-act-order": (_gptq(4), gptq(4, 1, act_order=True)),
    "awq": (_AWQ, awq),
    "compressed-4": (
        _compressed("pack-quantized", _weights("int", 4, "group")),
        compressed(4, symmetric=True),
    ),
    "compressed-4-zeros": (
        _compressed("pack-quantized", _weights("int", 4, "group")),
        compressed(4, symmetric=False),
    ),
    "compressed-int8": (_compressed("int-quantized", _weights("int", 8, "channel")), int8),
    "compressed-fp8": (
        _compressed("float-quantized", _weights("float", 8, "tensor")),
        fp8(".weight_scale", None),
    ),
    "fp8": (_FP8 | {"weight_block_size": [64, 64]}, fp8(".weight_scale_inv", 64)),
    "nf4": (_BNB, nf4(nested=False)),
    "nf4-nested": (_BNB, nf4(nested=True)),
    "llm-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8),
    **{f"mlx-{bits}": ({"group_size": GROUP, "bits": bits}, affine(bits)) for bits in (3, 4, 8)},
}


def write(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """The embedded model's first layer in ``folder`` as ``kind``; returns the weights that it
    stands for."""
    settings, quantize = KINDS[kind]
    shutil.copytree(TINY, folder)
    torch.manual_seed(0)
    stored, exact = {}, {}
    for name, weight in load_file(TINY / "model.safetensors").items():
        if name.startswith("model.layers.") and not name.startswith("model.layers.0."):
            continue
        linear = name.endswith("_proj.weight")
        table = kind.startswith("mlx") and name in ("model.embed_tokens.weight", "lm_head.weight")
        if not linear and not table:
            stored[name] = exact[name] = weight
            continue
        parts, exact[name] = quantize(weight)
        stem = name.removesuffix(".weight")
        stored |= {stem + suffix: part.contiguous() for suffix, part in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"quantization_config": settings, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return exact

"""The small checkpoint of ``hostile_checkpoints`` as GPTQ has it: zeros of the right shapes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
SIZES = {"I32": 4, "F16": 2, "F32": 4, "I64": 8, "U8": 1, "U32": 4, "F8_E4M3": 1, "BF16": 2}
Header = dict[str, tuple[str, tuple[int, ...]]]


def headers(folder: Path) -> Header:
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(raw[8 : 8 + length])
    table.pop("__metadata__", None)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in table.items()}


def save(folder: Path, table: Header) -> None:
    """Zeros of these dtypes and shapes."""
    entries, end = {}, 0
    for name, (dtype, shape) in table.items():
        count = SIZES[dtype]
        for length in shape:
            count *= length
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    raw = json.dumps(entries).encode()
    content = struct.pack("<Q", len(raw)) + raw + bytes(end)
    (folder / "model.safetensors").write_bytes(content)


def pieces(folder: Path, **changes: tuple[str, tuple[int, ...]] | None) -> None:
    """The checkpoint in ``folder`` as GPTQ has it; of one weight some pieces are changed."""
    table: Header = {}
    (folder / "model.safetensors.index.json").unlink()
    for name, (_, shape) in headers(folder).items():
        if not name.endswith("_proj.weight"):
            table[name] = ("F16", shape)
            continue
        rows, columns = shape
        groups, stem = -(-columns // 32), name.removesuffix("weight")
        table |= {
            f"{stem}qweight": ("I32", (columns // 8, rows)),
            f"{stem}qzeros": ("I32", (groups, rows // 8)),
            f"{stem}scales": ("F16", (groups, rows)),
            f"{stem}g_idx": ("I32", (columns,)),
        }
    stem = "model.layers.0.self_attn.o_proj."
    for piece, change in changes.items():
        table.pop(stem + piece)
        if change is not None:
            table[stem + piece] = change
    save(folder, table)


def edit(folder: Path, **changes: object) -> None:
    """``changes`` in the ``config.json`` of ``folder``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")

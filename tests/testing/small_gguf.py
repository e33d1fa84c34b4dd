"""A GGUF of some kilobytes, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe.models import gguf_files


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def typed(value: object) -> bytes:
    """A value with its kind before it."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        first = typed(value[0])[:4]
        items = b"".join(typed(item)[4:] for item in value)
        return struct.pack("<I", 9) + first + struct.pack("<Q", len(value)) + items
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<Ii", 5, value)


HIDDEN, INNER, VOCABULARY = 32, 64, 40
SETTINGS: Mapping[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 512,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": [chr(97 + n) if n < 26 else f"<{n}>" for n in range(VOCABULARY)],
    "tokenizer.ggml.token_type": [1 if n < 26 else 3 for n in range(VOCABULARY)],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 30,
}
TENSORS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "token_embd.weight": (1, (HIDDEN, VOCABULARY)),
    "output_norm.weight": (0, (HIDDEN,)),
    "blk.0.attn_norm.weight": (0, (HIDDEN,)),
    "blk.0.ffn_norm.weight": (0, (HIDDEN,)),
    "blk.0.attn_q.weight": (2, (HIDDEN, 32)),
    "blk.0.attn_k.weight": (2, (HIDDEN, 16)),
    "blk.0.attn_v.weight": (8, (HIDDEN, 16)),
    "blk.0.attn_output.weight": (2, (32, HIDDEN)),
    "blk.0.ffn_gate.weight": (2, (HIDDEN, INNER)),
    "blk.0.ffn_up.weight": (2, (HIDDEN, INNER)),
    "blk.0.ffn_down.weight": (2, (INNER, HIDDEN)),
}


def written(
    pairs: Mapping[str, Any] = SETTINGS,
    tensors: Mapping[str, tuple[int, tuple[int, ...]]] = TENSORS,
    version: int = 3,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, value in pairs.items():
        head += text(key) + typed(value)
    end = 0
    for name, (kind, shape) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", kind, end)
        _, block, size = gguf_files.TYPES.get(kind, ("", 32, 18))
        count = 1
        for length in shape:
            count *= length
        end += -(-(count // block * size) // 32) * 32
    return head + bytes(-len(head) % 32) + bytes(end)


def write(path: Path) -> Path:
    """The file as it should be."""
    path.write_bytes(written())
    return path

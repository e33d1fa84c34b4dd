"""Random checkpoints with the real shapes of the Phi family, for measuring time and memory at full
size.

    python benchmarks/checkpoint.py phi-3.5-mini FOLDER

Weights are random bf16 numbers of a trained model's magnitude, in shards as on the hub; the
tokenizer is the embedded model's (its vocabulary is smaller than the weights', whose other rows no
text reaches). Nothing is learned here: fidelity figures on such a model only say that the
arithmetic is right.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENIZER = Path(__file__).resolve().parent.parent / "phipipe" / "assets" / "tiny-phi3"
SHARD_BYTES = 4_950_000_000  # as large as the hub's shards of these models
CHUNK = 2**24  # values made at a time

# Shapes from the models' public config.json (hub, microsoft/NAME).
_MINI = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
}
_MEDIUM = {
    **_MINI,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
}
_PHI4 = {
    **_MEDIUM,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000,
    "sliding_window": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "phi-3-mini-4k": {**_MINI, "max_position_embeddings": 4096, "sliding_window": 2047},
    "phi-3.5-mini": _MINI,
    "phi-3-medium-128k": {**_MEDIUM, "sliding_window": 131072},
    "phi-4": _PHI4,
    "phi-4-reasoning": {**_PHI4, "max_position_embeddings": 32768, "rope_theta": 500000},
    "phi-4-mini": {
        **_MINI,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 200064,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
    },
}


def config(name: str) -> dict[str, Any]:
    """The ``config.json`` of family member ``name``; LongRoPE's factors are a ramp, the real ones
    are learned."""
    settings = json.loads((TOKENIZER / "config.json").read_text("utf-8")) | SHAPES[name]
    if settings["max_position_embeddings"] > settings["original_max_position_embeddings"]:
        rotary = (
            settings["hidden_size"]
            // settings["num_attention_heads"]
            * settings.get("partial_rotary_factor", 1)
        )
        short = [round(1 + i / rotary, 4) for i in range(int(rotary) // 2)]
        settings["rope_scaling"] = {
            "type": "longrope",
            "short_factor": short,
            "long_factor": [16 * f for f in short],
        }
    return settings


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Phi-3 checkpoint's tensors, in the order of the hub's shards."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, shared = shape["num_attention_heads"], shape["num_key_value_heads"]
    head = hidden // heads
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for i in range(shape["num_hidden_layers"]):
        yield f"model.layers.{i}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.mlp.down_proj.weight", (hidden, inner)
        yield f"model.layers.{i}.mlp.gate_up_proj.weight", (2 * inner, hidden)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.self_attn.o_proj.weight", (hidden, heads * head)
        yield f"model.layers.{i}.self_attn.qkv_proj.weight", ((heads + 2 * shared) * head, hidden)
    yield "model.norm.weight", (hidden,)
    if not shape.get("tie_word_embeddings"):
        yield "lm_head.weight", (shape["vocab_size"], hidden)


def shards(shape: dict[str, Any], limit: int = SHARD_BYTES) -> list[dict[str, tuple[int, ...]]]:
    """The tensors, spread over files of at most ``limit`` bytes."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dims in tensors(shape):
        length = 2 * math.prod(dims)
        if files[-1] and size + length > limit:
            files.append({})
            size = 0
        files[-1][name] = dims
        size += length
    return files


def values(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint16]:
    """``count`` random bf16 numbers with magnitudes from 2^-7 to 2^-5 (0.018 on average), of both
    signs."""
    raw = rng.integers(0, 2**64, (count + 3) // 4, dtype=np.uint64).view(np.uint16)[:count]
    return raw & 0x80FF | 0x3C00  # sign, lowest exponent bit and fraction stay random


def write(folder: Path, shape: dict[str, Any], limit: int = SHARD_BYTES) -> int:
    """Write a checkpoint with ``shape``, a ``config.json``, to the new ``folder``; returns the
    bytes of its weights."""
    folder.mkdir(parents=True)
    for path in sorted(TOKENIZER.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(shape, indent=2) + "\n", "utf-8")
    rng, files = np.random.default_rng(7), shards(shape, limit)
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    total = sum(
        _write_shard(folder / name, rng, shard) for name, shard in zip(names, files, strict=True)
    )
    index = {name: file for file, shard in zip(names, files, strict=True) for name in shard}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", "utf-8")
    return total


def _write_shard(path: Path, rng: np.random.Generator, shard: dict[str, tuple[int, ...]]) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shard.items():
        start, end = end, end + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for name, dims in shard.items():
            count = math.prod(dims)
            for start in range(0, count, CHUNK):
                part = values(rng, min(CHUNK, count - start))
                stream.write(
                    (part & 0 | 0x3F80 if name.endswith("norm.weight") else part).tobytes()
                )
    return end


def main() -> None:
    """Write one checkpoint, and say how long it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    start = time.perf_counter()
    size = write(chosen.folder, config(chosen.name))
    seconds = time.perf_counter() - start
    print(
        f"{chosen.name}: {size / 2**30:.2f} GiB in {seconds:.0f} s, {seconds / size * 1e9:.2f} "
        f"s per GB"
    )


if __name__ == "__main__":
    main()

"""A small checkpoint, and some hundred ways in which one place of it is not what it should be.

``base`` writes the checkpoint; ``mutations`` yields what to change: file name → new content, None
to delete it. Needs nothing but Python.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 32, 48, 2, 4, 2, 40
HEAD = HIDDEN // HEADS
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG: dict[str, Any] = {
    "_name_or_path": "someone/tiny",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": [2, 3],
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "layer_types": ["full_attention"] * LAYERS,
    "max_position_embeddings": 2048,
    "model_type": "phi3",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "original_max_position_embeddings": 512,
    "pad_token_id": 2,
    "partial_rotary_factor": 1.0,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * (HEAD // 2),
        "long_factor": [2.0] * (HEAD // 2),
    },
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 2,
    "temperature": 0.7,
    "do_sample": False,
}
ADDED = ["<unk>", "<s>", "</s>", "<|end|>"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [{"id": i, "content": token, "special": True} for i, token in enumerate(ADDED)],
    "model": {
        "type": "BPE",
        "vocab": {**{t: i for i, t in enumerate(ADDED)}, "a": 4, "b": 5},
        "merges": [],
    },
}
SETTINGS: dict[str, Any] = {
    "add_bos_token": False,
    "added_tokens_decoder": {
        str(i): {"content": token, "special": True} for i, token in enumerate(ADDED)
    },
    "bos_token": "<s>",
    "chat_template": "{{ messages[0]['content'] }}",
    "eos_token": {"content": "</s>", "lstrip": False},
    "model_max_length": 2048,
    "pad_token": "</s>",
    "tokenizer_class": "LlamaTokenizer",
}
# What takes a leaf's place; text that begins with RAW is written as it stands, for what JSON's
# writers refuse.
RAW = "@raw@"
ODD: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "half": 0.5,
    "billion": 10**9,
    "2**70": 2**70,
    "infinity": f"{RAW}Infinity",
    "nan": f"{RAW}NaN",
    "1e400": f"{RAW}1e400",
    "digits": f"{RAW}{'9' * 5000}",
    "empty": "",
    "text": "x",
    "number as text": "12",
    "terminal": "\x1b]0;X\x07",
    "right to left": "a\u202eb",
    "surrogate": f'{RAW}"\\ud800"',
    "long": "y" * 100_000,
    "path": "../../etc/passwd",
    "list": [],
    "texts": ["x", "\x1b[2J"],
    "table": {},
    "nested": {"type": "linear", "factor": "x"},
    "deep": f"{RAW}{'[' * 200_000}",
}
GONE = object()


class Mutation(NamedTuple):
    """``files``: what to write, by name, None to delete."""

    name: str
    files: Mapping[str, bytes | None]


def shapes() -> dict[str, list[int]]:
    """The tensors of the checkpoint."""
    found = {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
    }
    found["model.norm.weight"] = [HIDDEN]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        found |= {f"{at}.{norm}_layernorm.weight": [HIDDEN] for norm in ("input", "post_attention")}
        found[f"{at}.self_attn.qkv_proj.weight"] = [(HEADS + 2 * KV_HEADS) * HEAD, HIDDEN]
        found[f"{at}.self_attn.o_proj.weight"] = [HIDDEN, HIDDEN]
        found[f"{at}.mlp.gate_up_proj.weight"] = [2 * INNER, HIDDEN]
        found[f"{at}.mlp.down_proj.weight"] = [HIDDEN, INNER]
    return found


def header(wanted: Mapping[str, list[int]] | None = None) -> dict[str, Any]:
    """A safetensors header for tensors of these shapes, in F32."""
    made: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in (shapes() if wanted is None else wanted).items():
        size = 4
        for length in shape:
            size *= length
        made[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return made


def packed(head: Any, raw: bytes | None = None) -> bytes:
    """A safetensors file with the header ``head`` (``raw``: its bytes) and as many zeros as ours
    has."""
    body = written(head) if raw is None else raw
    size = max(
        entry["data_offsets"][1] for name, entry in header().items() if name != "__metadata__"
    )
    return struct.pack("<Q", len(body)) + body + bytes(size)


def written(value: Any) -> bytes:
    """``value`` as JSON, marked text as it stands."""
    text = json.dumps(value)
    while (start := text.find(f'"{RAW}')) >= 0:
        end = start + 1
        while text[end] != '"' or text[end - 1] == "\\":
            end += 1
        text = text[:start] + json.loads(text[start : end + 1]).removeprefix(RAW) + text[end + 1 :]
    return text.encode()


def base(folder: Path) -> None:
    """Write the checkpoint as it should be into the new ``folder``."""
    folder.mkdir(parents=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)


def files() -> dict[str, bytes]:
    """The checkpoint's files."""
    made = {
        "config.json": CONFIG,
        "generation_config.json": GENERATION,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": SETTINGS,
        "added_tokens.json": {"<|end|>": 3},
        INDEX: {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(shapes(), WEIGHTS)},
    }
    return {name: written(value) for name, value in made.items()} | {WEIGHTS: packed(header())}


def leaves(value: Any, most: int = 3) -> Iterator[tuple[str | int, ...]]:
    """Paths to every value of a JSON value, itself and tables included; of long lists and tables
    the first few."""
    yield ()
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for place, (key, below) in enumerate(inner):
        if place < most or not isinstance(value, list):
            yield from ((key, *path) for path in leaves(below, most))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``, or nothing there."""
    if not path:
        return new
    made = deepcopy(value)
    at = made
    for key in path[:-1]:
        at = at[key]
    if new is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return made


def _of(file: str, value: Any, pack: Callable[[Any], bytes] = written) -> Iterator[Mutation]:
    for path in leaves(value):
        where = ".".join(map(str, path))
        for name, odd in [*ODD.items(), *([("gone", GONE)] if path else [])]:
            yield Mutation(f"{file}: {where} = {name}", {file: pack(replaced(value, path, odd))})
    for key in ("\x1b[2J", "\ud800", "", "k" * 100_000):
        if isinstance(value, dict):
            made = pack({**value, f"{RAW[:0]}{key}": next(iter(value.values()))})
            yield Mutation(f"{file}: key {key[:9]!a}", {file: made})


def _few_tensors() -> dict[str, Any]:
    """A header of which one tensor stands for all in what is changed."""
    made = header()
    return {name: made[name] for name in ("__metadata__", "model.norm.weight")}


def _headers() -> Iterator[Mutation]:
    whole = header()

    def pack(part: Any) -> bytes:
        return packed({**whole, **part} if isinstance(part, dict) else part)

    yield from _of(WEIGHTS, _few_tensors(), pack)
    norm = whole["model.norm.weight"]
    for name, entry in {
        "a long shape": {**norm, "shape": [1] * 10_000},
        "a shape of zeros": {**norm, "shape": [0] * 4},
        "a negative shape": {**norm, "shape": [-4, -8]},
        "a shape that overflows": {**norm, "shape": [2**40, 2**40]},
        "a hole": {**norm, "data_offsets": [n + 4 for n in norm["data_offsets"]]},
        "turned round": {**norm, "data_offsets": norm["data_offsets"][::-1]},
        "three offsets": {**norm, "data_offsets": [*norm["data_offsets"], 0]},
        "no end": {**norm, "data_offsets": [0, f"{RAW}Infinity"]},
        "unknown dtype": {**norm, "dtype": "F12"},
        "whole numbers": {**norm, "dtype": "I32"},
    }.items():
        yield Mutation(f"header: {name}", {WEIGHTS: pack({"model.norm.weight": entry})})
    for name, extra in {
        "a bias": {"model.layers.0.self_attn.o_proj.bias": [HIDDEN]},
        "a third layer": {"model.layers.2.input_layernorm.weight": [HIDDEN]},
        "an adapter": {"model.layers.0.self_attn.o_proj.lora_A.weight": [2, HIDDEN]},
        "a terminal's name": {"\x1b]0;X\x07": [HIDDEN]},
    }.items():
        head = header({**shapes(), **extra})
        end = max(e["data_offsets"][1] for n, e in head.items() if n != "__metadata__")
        body = written(head)
        yield Mutation(
            f"tensors: {name}",
            {WEIGHTS: struct.pack("<Q", len(body)) + body + bytes(end), INDEX: None},
        )
    for gone in shapes():
        rest = header({name: shape for name, shape in shapes().items() if name != gone})
        end = max(e["data_offsets"][1] for n, e in rest.items() if n != "__metadata__")
        body = written(rest)
        yield Mutation(
            f"tensors: no {gone}",
            {WEIGHTS: struct.pack("<Q", len(body)) + body + bytes(end), INDEX: None},
        )


def huge() -> Iterator[Mutation]:
    """Headers and indexes that are too much, of which each takes some 100 MB to make."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    many = ("{" + ",".join(f'"t{i}":{entry}' for i in range(10**6)) + "}").encode()
    yield Mutation("header: a million tensors", {WEIGHTS: packed(None, many)})
    yield Mutation("header: quotes", {WEIGHTS: packed(None, b'{"' + b'\\"' * 2**21)})
    yield Mutation("config: quotes", {"config.json": b'{"' + b'\\"' * 2**20})
    shape = b'{"t":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b"1," * 2**21 + b"1]}}"
    yield Mutation("header: a shape of two million", {WEIGHTS: packed(None, shape)})
    names = ",".join(f'"t{i}":"{WEIGHTS}"' for i in range(10**6))
    yield Mutation("index: a million names", {INDEX: b'{"weight_map":{' + names.encode() + b"}}"})
    layers = {f"model.layers.{i}.x": [1] for i in range(50_000)}
    yield Mutation("header: 50,000 layers", {WEIGHTS: packed(header(layers))})


def _whole_files() -> Iterator[Mutation]:
    good = files()
    for file, content in good.items():
        for name, other in {
            "gone": None,
            "empty": b"",
            "zeros": bytes(100),
            "half": content[: len(content) // 2],
            "not UTF-8": b'{"a": "\xff"}',
            "twice": b'{"a": 1, "a": 2}',
            "pointer": b"version https://git-lfs.github.com/spec/v1\n"
            b"oid sha256:0\nsize 4972489328\n",
            "html": b"<html>Access denied</html>",
        }.items():
            yield Mutation(f"{file} {name}", {file: other})
    for length in (0, 1, 2**20, 2**62, 2**63, 2**64 - 1):
        yield Mutation(
            f"header length {length}", {WEIGHTS: struct.pack("<Q", length) + good[WEIGHTS][8:]}
        )
    for name, beside in {
        "adapter_model.safetensors": good[WEIGHTS],
        "adapter_config.json": b'{"base_model_name_or_path": "\\u001b[2J", "r": 4}',
        "consolidated.safetensors": good[WEIGHTS],
        "model-00001-of-00002.safetensors": good[WEIGHTS],
        "pytorch_model.bin": b"x",
        "train.py": b"raise SystemExit",
        "configuration_phi3.py": b"raise SystemExit",
    }.items():
        yield Mutation(f"{name} beside", {name: beside})


def mutations() -> Iterator[Mutation]:
    """All but the huge ones."""
    yield from _of("config.json", CONFIG)
    yield from _of("generation_config.json", GENERATION)
    yield from _of("tokenizer_config.json", SETTINGS)
    yield from _of("tokenizer.json", TOKENIZER)
    few = dict.fromkeys(list(shapes())[:2], WEIGHTS)
    yield from _of(INDEX, {"metadata": {"total_size": 1}, "weight_map": few})
    yield from _headers()
    yield from _whole_files()

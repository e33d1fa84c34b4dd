"""What a checkpoint is: read from its ``config.json``, its safetensors headers and the names of its files alone.

Nothing here loads a weight or runs code. What could run code later (pickles, ``auto_map``, custom
operator libraries) is refused here, before any toolchain sees the folder.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phipipe import code_keys, family, json_files
from phipipe.errors import SourceError

# What a toolchain may see of a checkpoint. Everything else (code, pickles, pictures) stays outside.
ALLOWED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
    "NOTICE*",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")

# What a model has besides text, by the keys of its config: Phi-3.5-vision's, Phi-4-multimodal's, transformers' own.
PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision_config", "img_processor", "image_embd_layer", "vision_lora", "mm_vision_tower"),
    "audio": ("audio_config", "audio_processor", "audio_embd_layer", "speech_lora"),
}

# Bytes per element of safetensors dtypes (safetensors' own table).
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
LARGE_PARAMETERS = 10**9
MAX_HEADER_BYTES = 100_000_000  # safetensors refuses larger headers too


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's shape. Lengths are in tokens; ``parameters`` and ``weight_bytes`` come from the headers.

    ``rope_scaling`` is LongRoPE in the one spelling that every converter reads ("type": "longrope", "short_factor",
    "long_factor" …), whatever the config's; None without LongRoPE. ``tokenizer`` says which of its files llama.cpp's
    converter can read: "sentencepiece" (``tokenizer.model``), "gpt2" (byte-level BPE) or "other".
    """

    folder: Path
    config: Mapping[str, Any]
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_length: int
    original_context_length: int
    sliding_window: int | None
    tied: bool
    longrope: bool
    rope_scaling: Mapping[str, Any] | None
    rope_theta: float
    partial_rotary_factor: float
    experts: int  # 0 in a dense model
    active_experts: int
    parts: tuple[str, ...]  # besides text: "vision", "audio"
    tokenizer: str
    resaved: bool  # transformers 5's own layout, which other converters misread
    parameters: int
    weight_bytes: int
    cut: bool = False  # its first layers alone, for a proof

    @property
    def large(self) -> bool:
        """Whether an unquantized copy is too much to make and score for its own sake."""
        return self.parameters > LARGE_PARAMETERS and not self.cut

    @property
    def active_parameters(self) -> int:
        """Parameters that a token passes through: of the experts, only those that are chosen for it."""
        idle = max(self.experts - self.active_experts, 0)
        return self.parameters - idle * self.layers * 3 * self.hidden_size * self.intermediate_size

    @property
    def besides(self) -> str:
        """``parts`` for people."""
        return " and ".join(f"{part} parts" for part in self.parts) or "parts"

    @property
    def cuts(self) -> bool:
        """Whether the sliding window is shorter than the context; LongRoPE models carry one that never cuts."""
        return self.sliding_window is not None and 0 < self.sliding_window < self.context_length


def files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that a toolchain may see, sorted; sub-folders never count."""
    found = {p.name for pattern in ALLOWED for p in folder.glob(pattern) if p.is_file()}
    return sorted(found)


def read(folder: Path, sizes: Mapping[str, int] | None = None) -> Checkpoint:
    """Read and vet the checkpoint in ``folder``.

    ``sizes`` has the whole sizes in bytes of weight files of which ``folder`` holds the header alone.

    Raises:
        SourceError: it is no checkpoint, is incomplete or corrupt, or wants code to be run.
    """
    if not folder.is_dir():
        raise SourceError(f"no checkpoint at `{folder}`: there is no such folder", hint="check `source.path`")
    config = _json(folder / "config.json")
    _refuse_code(folder, config)
    weights = weight_files(folder)
    tensors = [t for name in weights for t in _tensors(folder / name, (sizes or {}).get(name))]
    counts = sum(count for _, count, _ in tensors), sum(size for _, _, size in tensors)
    try:
        checkpoint = _checkpoint(folder, config, _tokenizer(folder), *counts)
    except KeyError as missing:
        raise SourceError(f"`{folder / 'config.json'}` does not say {missing}") from None
    except (TypeError, ValueError, IndexError, AttributeError) as wrong:
        raise SourceError(f"`{folder / 'config.json'}` is malformed: {wrong}") from None
    if not checkpoint.tokenizer and family.is_native(checkpoint.architecture):
        raise SourceError(f"`{folder}` has no tokenizer", hint=f"add one of: {', '.join(TOKENIZERS)}")
    return checkpoint


def of_config(config: Mapping[str, Any], tokenizer: str = "other") -> Checkpoint:
    """The shape that ``config`` alone describes, its parameters counted by formula and stored in 16 bits.

    Raises:
        KeyError: a needed key is missing.
    """
    wide = {**config, "intermediate_size": _inner(config)}
    count = family.parameters(wide)
    return _checkpoint(Path(), config, tokenizer, count, 2 * count)


def _inner(config: Mapping[str, Any]) -> int:
    return int(config["ff_intermediate_size" if "ff_intermediate_size" in config else "intermediate_size"])


def _checkpoint(
    folder: Path, config: Mapping[str, Any], tokenizer: str, parameters: int, weight_bytes: int
) -> Checkpoint:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    context = int(config["max_position_embeddings"])
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    heads = int(config["num_attention_heads"])
    window = config.get("sliding_window")
    scaling = _longrope(rope)
    return Checkpoint(
        folder=folder,
        config=config,
        architecture=str(config["architectures"][0]),
        model_type=str(config["model_type"]),
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=_inner(config),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        context_length=context,
        original_context_length=int(original or context),
        sliding_window=None if window is None else int(window),
        tied=bool(config.get("tie_word_embeddings", False)),
        longrope=scaling is not None,
        rope_scaling=scaling,
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        partial_rotary_factor=float(config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0),
        experts=int(config.get("num_local_experts") or config.get("num_experts") or 0),
        active_experts=int(config.get("num_experts_per_tok") or 0),
        parts=tuple(part for part, names in PARTS.items() if _has(config, names)),
        tokenizer=tokenizer,
        resaved=bool(config.get("rope_parameters")),
        parameters=parameters,
        weight_bytes=weight_bytes,
    )


def respelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to replace in ``config`` for tools that know LongRoPE by its present name only; often nothing.

    transformers 5 itself refuses "su" (the original context is not handed on), mlx-lm reads "yarn" as no scaling.
    """
    rope = config.get("rope_scaling") or {}
    scaling = _longrope(rope)
    return {} if scaling is None or rope.get("type") == "longrope" else {"rope_scaling": scaling}


def _longrope(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """LongRoPE as it is spelled today; "su" and, with its lists of factors, "yarn" are what Phi-3 called it first."""
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    if kind not in {"longrope", "su", "yarn"} or not {"short_factor", "long_factor"} <= set(rope):
        return None
    known = ("short_factor", "long_factor", "short_mscale", "long_mscale", "original_max_position_embeddings")
    return {"type": "longrope", **{key: rope[key] for key in known if key in rope}}


def _has(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    return any(key in names and value not in (None, {}, []) for _, key, value in json_files.walk(config))


def _tokenizer(folder: Path) -> str:
    """ "" if there is none; see ``Checkpoint.tokenizer``."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return ""
    settings = _optional_json(folder / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "GPT2Tokenizer":
        return "gpt2"
    return "sentencepiece" if (folder / "tokenizer.model").is_file() else "other"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(f"`{path.parent}` is no checkpoint: it has no `{path.name}`")
    return json_files.read_object(path)


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what would make a tool run code that came with the weights (promise S2).

    An ``auto_map`` alone is harmless and common (Phi-3.5-mini has one): without the code beside it,
    and with ``trust_remote_code`` off, transformers uses its own class. With code it is refused.
    """
    code = sorted(p.name for p in folder.rglob("*.py"))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        settings = config if name == "config.json" else _optional_json(folder / name)
        code_keys.refuse(folder / name, settings)
        for _, key, _ in json_files.walk(settings):
            if key == "auto_map" and code:
                raise SourceError(
                    f"`{folder / name}` asks to run code that lies beside it (`auto_map`, {', '.join(code[:3])}); "
                    "phipipe never runs a model's code",
                    hint="if transformers has this architecture built in (all dense Phi models), delete the *.py files",
                )


def _optional_json(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up the model, from the index where there is one."""
    present = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file())
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(map(str, _json(index).get("weight_map", {}).values())))
        missing = [name for name in named if name not in present]
        if missing:
            raise SourceError(f"`{folder}` is incomplete: its index names `{missing[0]}`, which is not there")
        if named:
            return named
    if present:
        return present
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise SourceError(
            f"`{folder}` holds its weights as pickles only (`{pickles[0]}`); loading those can run code",
            hint="save the model again with safetensors",
        )
    raise SourceError(f"`{folder}` has no weights: no `*.safetensors` file")


def _tensors(path: Path, size: int | None = None) -> list[tuple[str, int, int]]:
    """(name, elements, bytes) of every tensor; checks that the header fits the file's ``size`` to the byte."""
    size = path.stat().st_size if size is None else size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
            raise SourceError(f"`{path}` is not a safetensors file, or is cut short ({size} bytes)")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = sorted((*map(int, t["data_offsets"]), name, t["dtype"], t["shape"]) for name, t in header.items())
        return _checked(path, entries, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SourceError(f"`{path}` has a corrupt safetensors header") from None


def _checked(path: Path, entries: list[tuple[Any, ...]], data_bytes: int) -> list[tuple[str, int, int]]:
    end, tensors = 0, []
    for start, stop, name, dtype, shape in entries:
        count = math.prod(shape)
        if start != end or stop - start != count * DTYPE_BYTES.get(dtype, 1):
            raise SourceError(f"`{path}` is corrupt: tensor `{name}` does not lie where its header says")
        end = stop
        tensors.append((str(name), count, stop - start))
    if end != data_bytes:
        raise SourceError(
            f"`{path}` is cut short or padded: its header describes {end} bytes of weights, the file has {data_bytes}",
            hint="download or copy it again",
        )
    return tensors

"""What a checkpoint is: read from its ``config.json``, its safetensors headers and the names of its
files alone.

Nothing here loads a weight or runs code. What could run code later (pickles, ``auto_map``, custom
operator libraries) is refused here, before any toolchain sees the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from phipipe.errors import SourceError
from phipipe.files import json_files, user_paths
from phipipe.models import (
    config_check,
    family,
    family_sizes,
    foreign,
    held,
    layout_check,
    layouts,
    likeness,
    longrope,
    plain_values,
    quantized,
    rotary,
    tokenizer_files,
    vetting,
    vocabulary_kinds,
    weight_files,
)
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.held import Held
from phipipe.models.remarks import Remark
from phipipe.steps import Json

# What a toolchain may see of a checkpoint. Everything else (code, pickles, pictures) stays outside.
ALLOWED = (
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
    *("*.safetensors", "*.safetensors.index.json"),
    *("LICENSE*", "NOTICE*", weight_files.ADAPTER),
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")

# What a model has besides text, by the keys of its config.
PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": (
        *("vision_config", "img_processor", "image_embd_layer", "vision_lora"),
        "mm_vision_tower",
    ),
    "audio": ("audio_config", "audio_processor", "audio_embd_layer", "speech_lora"),
}


def files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that a toolchain may see, sorted; sub-folders and weights of
    others never do."""
    allowed = {p.name for pattern in ALLOWED for p in folder.glob(pattern) if p.is_file()}
    try:
        ignored = weight_files.choose(folder).ignored
    except SourceError:  # no model: `read` says why
        ignored = ()
    return sorted(allowed - set(ignored))


def loose_files(folder: Path) -> list[str]:
    """Of ``files``, those beside the weights and their index."""
    return [name for name in files(folder) if not name.endswith((".safetensors", ".index.json"))]


def read(folder: Path, sizes: Mapping[str, int] | None = None) -> Checkpoint:
    """Read and vet the checkpoint in ``folder``.

    ``sizes`` has the whole sizes in bytes of weight files of which ``folder`` holds the header
    alone.

    Raises:
        SourceError: it is none, or incomplete; its files disagree, or want code to be run.
    """
    path = _config_file(folder)
    config = config_check.read(path)
    remarks = vetting.refuse_code(folder, config)
    foreign.refuse(path, config)
    config, stored = quantized.split(path, config)
    choice = weight_files.choose(folder)
    vetting.refuse_pointers(folder, files(folder))
    config_check.check_model(path, config)
    config, named = vetting.with_architecture(path, config)
    plain_values.refuse(path, config)
    tensors = weight_files.read(folder, choice, sizes)
    layout_check.check_index(folder, config["architectures"][0], choice, tensors)
    vocabulary = _vocabulary(held.by(tokenizer_files.FILES, folder))
    checkpoint = _checkpoint(folder, config, vocabulary.kind, 0, 0)
    checkpoint, tensors, widened = quantized.widened(checkpoint, stored, tensors)
    remarks += [
        *widened,
        *named,
        *vetting.note_unknown_ends(folder, config),
        *vetting.note_double_settings(config),
        *vetting.note_files_beside(folder, choice),
        *vetting.check_head(folder, tensors, tied=checkpoint.tied, here=not (sizes or stored)),
    ]
    shapes = layouts.sizes_of(checkpoint, tensors)
    layout_check.check(folder, checkpoint.architecture, shapes, tensors)
    remarks += _check_tokenizer(checkpoint)
    like = likeness.closest(checkpoint.architecture, checkpoint.model_type, tensors)
    return _with_cuts(replace(checkpoint, remarks=tuple(remarks), like=like), vocabulary)


def _with_cuts(checkpoint: Checkpoint, vocabulary: _Vocabulary) -> Checkpoint:
    """``checkpoint`` with how its tokenizer cuts text."""
    return replace(
        checkpoint,
        normal_form=vocabulary.normal_form,
        cuts_digits=vocabulary.cuts_digits,
        keeps_marks=vocabulary.keeps_marks,
    )


class _Vocabulary(NamedTuple):
    """What a tokenizer's files say of how it cuts text; ``kind`` is "" if there are none, see
    ``Checkpoint.tokenizer``."""

    kind: str
    normal_form: str
    cuts_digits: bool
    keeps_marks: bool


@lru_cache(maxsize=64)
def _vocabulary(files: Held) -> _Vocabulary:
    folder = files.folder
    there = any((folder / name).is_file() for name in TOKENIZERS)
    return _Vocabulary(
        kind=vocabulary_kinds.of(folder) if there else "",
        normal_form=vocabulary_kinds.normal_form(folder),
        cuts_digits=vocabulary_kinds.cuts_digits(folder),
        keeps_marks=vocabulary_kinds.keeps_marks(folder),
    )


@lru_cache(maxsize=64)
def _compared(files: Held, vocab_size: int) -> tuple[Remark, ...]:
    return tuple(tokenizer_files.check(files.folder, vocab_size))


def _check_tokenizer(checkpoint: Checkpoint) -> list[Remark]:
    found = _compared(held.by(tokenizer_files.FILES, checkpoint.folder), checkpoint.vocab_size)
    if not checkpoint.tokenizer and family.is_native(checkpoint.architecture):
        raise SourceError(
            f"`{checkpoint.folder}` has no tokenizer", hint=f"add one of: {', '.join(TOKENIZERS)}"
        )
    return list(found)


def _config_file(folder: Path) -> Path:
    """The ``config.json`` of a folder that may be a checkpoint."""
    if not folder.is_dir():
        raise SourceError(
            f"no checkpoint at `{folder}`: {user_paths.missing(folder)}",
            hint="check `source.path`",
        )
    vetting.refuse_no_files(folder, ALLOWED[: ALLOWED.index("LICENSE*")])
    path = folder / "config.json"
    if not path.is_file():
        weight_files.choose(folder)  # which knows what other kinds of folders there are
        raise SourceError(f"`{folder}` is no checkpoint: it has no `config.json`")
    return path


def of_config(config: Mapping[str, Json], tokenizer: str = "other") -> Checkpoint:
    """The shape that ``config`` alone describes, its parameters counted by formula and stored in 16
    bits.

    Raises:
        KeyError: a needed key is missing.
    """
    wide = {**config, "intermediate_size": _inner(config)}
    count = family_sizes.parameters(wide)
    return _checkpoint(Path(), config, tokenizer, count, 2 * count)


def _inner(config: Mapping[str, Json]) -> int:
    name = "ff_intermediate_size" if "ff_intermediate_size" in config else "intermediate_size"
    return int(config[name])


def _checkpoint(
    folder: Path, config: Mapping[str, Json], tokenizer: str, parameters: int, weight_bytes: int
) -> Checkpoint:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor")
    original = "original_max_position_embeddings"
    context = int(config["max_position_embeddings"])
    heads = int(config["num_attention_heads"])
    scaling = longrope.spelled(rope) if rotary.kind(config) == "longrope" else None
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
        head_size=family_sizes.head_size(config),
        context_length=context,
        original_context_length=int(config.get(original) or rope.get(original) or context),
        sliding_window=family_sizes.sliding_window(config),
        tied=family_sizes.is_tied(config),
        longrope=scaling is not None,
        rope_scaling=scaling,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        partial_rotary_factor=float(share or 1.0),
        experts=int(config.get("num_local_experts") or config.get("num_experts") or 0),
        active_experts=int(config.get("num_experts_per_tok") or 0),
        parts=tuple(part for part, names in PARTS.items() if _has(config, names)),
        tokenizer=tokenizer,
        resaved=bool(config.get("rope_parameters")),
        parameters=parameters,
        weight_bytes=weight_bytes,
    )


def _has(config: Mapping[str, Json], names: Iterable[str]) -> bool:
    return any(
        key in names and value not in (None, {}, []) for _, key, value in json_files.walk(config)
    )

"""llama.cpp's own converter, as auto-round carries it, opened for one checkpoint.

The converter looks for a vocabulary in whatever files it tries first. Here ``tokenizer.json``
decides, the file that all other runtimes read, where there is one.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import gguf
from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

from phipipe.backends.llamacpp import pieces, pre_tokenizers
from phipipe.backends.llamacpp.types import FLOATS
from phipipe.errors import StepFailed
from phipipe.models import vocabulary_kinds
from phipipe.steps import Json

if TYPE_CHECKING:
    from auto_round.export.export_to_gguf.conversion import TextModel


def opened(source: Path, target: Path, kind: str, name: str) -> TextModel:
    """The converter of ``source``, a staged checkpoint, to the file ``target`` in ``kind``, F32,
    F16 or BF16; ``name`` is to stand in the file. Its ``write`` does the work.

    ``source`` gets what ``tokenizer.json`` alone says of added tokens into its
    ``tokenizer_config.json``, where the converter looks.

    Raises:
        StepFailed: the converter does not know the architecture.
    """
    config = _read(source / "config.json")
    known = _class_of(config["architectures"][0])
    whole = _read(source / "tokenizer.json")
    if whole:
        _tell_added_tokens(source / "tokenizer_config.json", whole)
    model = known(source, getattr(gguf.LlamaFileType, FLOATS[kind]), target, model_name=name)
    by_hash = model.get_vocab_base_pre

    def by_hash_or_pattern(tokenizer: object) -> str:
        try:
            return str(by_hash(tokenizer))
        except NotImplementedError:
            return pre_tokenizers.name_of(source)

    model.get_vocab_base_pre = by_hash_or_pattern
    found = vocabulary_kinds.of(source)
    if found == vocabulary_kinds.BYTES:
        model.set_vocab = model._set_vocab_gpt2
    elif found == vocabulary_kinds.PIECES and not (source / "tokenizer.model").is_file():
        model.set_vocab = lambda: pieces.write(model.gguf_writer, source, whole, config)
    return model


class _Lenient:
    """A module or class of ``gguf`` that has None for every name that the other lacks."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        found = getattr(self._real, name, None)
        return _Lenient(found) if name in ("MODEL_ARCH", "VisionProjectorType") else found


def _class_of(architecture: str) -> type[TextModel]:
    """The converter's class for ``architecture``.

    auto-round carries a converter that is newer than the gguf package: some of its modules name
    architectures, beside those that we convert, which that package does not have yet.

    Raises:
        StepFailed: it has none.
    """
    conversion = get_conversion(auto_update=False)
    base = importlib.import_module("conversion.base")
    with patch.object(base, "gguf", _Lenient(gguf)):
        try:
            known: type[TextModel] = conversion.get_model_class(architecture)
        except NotImplementedError:
            raise StepFailed(f"llama.cpp's converter does not know `{architecture}`") from None
    return known


def _tell_added_tokens(path: Path, whole: Mapping[str, Json]) -> None:
    """Add the added tokens of ``whole``, a ``tokenizer.json``, to the settings in ``path`` that
    lack them: transformers 5 writes them to the former alone."""
    settings = _read(path)
    known = settings.get("added_tokens_decoder") or {}
    added = {str(token.pop("id")): token for token in map(dict, whole.get("added_tokens") or ())}
    if not set(added) <= set(known):
        settings["added_tokens_decoder"] = added | known
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _read(path: Path) -> dict[str, Json]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}

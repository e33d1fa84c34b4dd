"""A checkpoint as a GGUF, by llama.cpp's own converter, and the Modelfile beside it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import gguf
import torch
from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

from phipipe.backends.llamacpp import MODEL, MODELFILE, modelfile, pre_tokenizers, stored
from phipipe.backends.llamacpp.header import tensors
from phipipe.backends.llamacpp.types import FLOATS
from phipipe.errors import StepFailed
from phipipe.models.staging import staged
from phipipe.steps import Inputs, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to ``model.gguf`` in ``params["type"]``, and an
    Ollama ``Modelfile``.

    Raises:
        StepFailed: the converter does not know the architecture, or what it wrote is not what was
            asked.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        # A folder of a neutral name: the converter reads names and sizes out of folder names.
        source = staged(inputs["source"], params["config_patch"], Path(scratch) / "model")
        _convert(source, out / MODEL, params)
    stored.check_floats(tensors(out / MODEL), params["type"])
    (out / MODELFILE).write_bytes(
        modelfile.text(inputs["source"], MODEL, params["context"]).encode()
    )


def _convert(source: Path, target: Path, params: Params) -> None:
    architecture = json.loads((source / "config.json").read_text("utf-8"))["architectures"][0]
    try:
        known = get_conversion(source, auto_update=False).get_model_class(architecture)
    except NotImplementedError:
        raise StepFailed(f"llama.cpp's converter does not know `{architecture}`") from None

    file_type = getattr(gguf.LlamaFileType, FLOATS[params["type"]])
    model = known(source, file_type, target, model_name=params["name"])
    by_hash = model.get_vocab_base_pre

    def by_hash_or_pattern(tokenizer: object) -> str:
        try:
            return str(by_hash(tokenizer))
        except NotImplementedError:
            return pre_tokenizers.name_of(source)

    model.get_vocab_base_pre = by_hash_or_pattern
    with torch.inference_mode():
        model.write()

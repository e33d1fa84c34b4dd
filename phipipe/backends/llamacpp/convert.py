"""A checkpoint as a GGUF, by llama.cpp's own converter, and the Modelfile beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from phipipe.backends.llamacpp import MODEL, MODELFILE, converter, modelfile, stored
from phipipe.backends.llamacpp.header import tensors
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
        model = converter.opened(source, out / MODEL, params["type"], params["name"])
        with torch.inference_mode():
            model.write()
    stored.check_floats(tensors(out / MODEL), params["type"])
    (out / MODELFILE).write_bytes(
        modelfile.text(inputs["source"], MODEL, params["context"]).encode()
    )

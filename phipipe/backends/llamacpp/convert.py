"""A checkpoint as a GGUF in floats: what its outline says, with the checkpoint's rows."""

from __future__ import annotations

import shutil
from pathlib import Path

from phipipe.backends.llamacpp import MODEL, MODELFILE, fill, header, stored
from phipipe.backends.llamacpp.fill import Filling
from phipipe.backends.llamacpp.rows import Outline
from phipipe.steps import Inputs, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["outline"]`` of ``inputs["source"]``, a checkpoint, to ``model.gguf`` in
    ``params["type"]``, and the ``Modelfile`` beside it. Byte by byte what llama.cpp's converter
    writes.

    Raises:
        StepFailed: what was written is not what was asked.
    """
    outline = Outline(inputs["outline"], inputs["source"])
    fillings = [Filling(one.tensor, one.shape[0], one.raw, one.announce) for one in outline.rows]
    fill.write(out / MODEL, outline.header.settings(), fillings)
    stored.check_floats(header.tensors(out / MODEL), params["type"])
    shutil.copyfile(inputs["outline"] / MODELFILE, out / MODELFILE)

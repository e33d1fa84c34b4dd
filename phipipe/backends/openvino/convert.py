"""A checkpoint as an IR in floating point."""

from __future__ import annotations

from pathlib import Path

from phipipe.backends.openvino import SCHEMES, graph, stored
from phipipe.backends.openvino.export import export
from phipipe.backends.openvino.files import MODEL
from phipipe.steps import Inputs, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an IR with weights in ``params["precision"]``,
    and its tokenizer.

    Raises:
        StepFailed: optimum left something incomplete or quantized.
    """
    precision = params["precision"]
    export(inputs["source"], out, precision, params["config_patch"])
    if precision != "fp32":
        graph.to_fp16(out / MODEL)
    stored.verify_unquantized(stored.weights(stored.complete(out)), SCHEMES[precision])

"""An IR with weights of 8 or 4 bits, read back and compared with what was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import openvino

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.openvino import compress, graph, stored
from phipipe.backends.openvino.files import MODEL
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with its weights at ``params["bits"]``
    bits.

    With ``inputs["source"]``, a checkpoint, in its place, it is converted here, with
    ``params["config_patch"]``. ``params`` holds the options besides, and the ``widths`` of single
    matrices. ``inputs["weights"]`` are learned codes (``algorithms.lattice``), which are stored as
    they are. The graph is read back and checked before the step counts as done.

    Raises:
        StepFailed: NNCF did something else than asked.
    """
    before: list[stored.Weight] = []
    learned = Lattice(inputs["weights"]) if "weights" in inputs else None

    def compressed(model: openvino.Model) -> openvino.Model:
        before.extend(stored.weights(model))
        return compress.compress(model, params, inputs.get("calibration"), learned)

    with compress.lean(out.parent):
        if "source" in inputs:
            # It takes seconds and 150 MB to import, and only checkpoints need it.
            from phipipe.backends.openvino.export import export

            export(inputs["source"], out, "fp16", params["config_patch"], compressed)
        else:
            model = compressed(stored.read(inputs["model"]))
            openvino.save_model(model, str(out / MODEL), compress_to_fp16=False)
            graph.number_nodes(out / MODEL)
            _copy_others(inputs["model"], out)
    graph.to_fp16(out / MODEL)
    floats = [replace(weight, kind="f16") for weight in before]  # bf16 where it was never written
    model = stored.complete(out)
    stored.verify(floats, stored.weights(model), params)
    if learned:
        stored.verify_learned(model, learned)


def _copy_others(source: Path, out: Path) -> None:
    """The files of ``source`` besides its graph."""
    copy_beside(source, out, leave=lambda name: Path(name).stem == Path(MODEL).stem)

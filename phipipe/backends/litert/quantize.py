"""Quantization: the weights of a ``.tflite`` at 8 or 4 bits, by ai-edge-quantizer."""

from __future__ import annotations

from pathlib import Path

from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.litert import exact, matrices
from phipipe.backends.litert.layout import MODEL, copy_others
from phipipe.backends.litert.mapped import MIN_MAX, check_learned, config_of, mapped
from phipipe.backends.litert.stored import read, verify
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with weights as ``params`` say, and
    read back.

    ``params["widths"]`` are those of single matrices, which are known by their values in
    ``inputs["source"]``, the checkpoint. ``inputs["weights"]`` are learned codes
    (``algorithms.lattice``), which are stored as they are.

    Raises:
        StepFailed: a matrix is stored in another way than asked; it names the first.
    """
    model, scheme, widths = inputs["model"] / MODEL, params["scheme"], params.get("widths", {})
    learned = Lattice(inputs["weights"]) if "weights" in inputs else None
    folded = learned is None  # what was learned is stored as it is
    names = matrices.in_buffers(model, inputs["source"], folded=folded) if widths else {}
    rules = recipe_manager.RecipeManager()
    rules.add_quantization_config(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        config_of(params["bits"], params["group_size"], scheme),
        MIN_MAX,
    )
    before = read(model)
    if learned:
        shapes = {names[weight.buffer]: weight.shape for weight in before}
        check_learned(learned, widths, shapes)
    with mapped(names, widths, scheme, learned):
        rounding = quantizer.Quantizer(str(model), rules.get_quantization_recipe())
        rounding.quantize().export_model(str(out / MODEL))
    copy_others(inputs["model"], out)
    verify(before, read(out / MODEL), params, names)
    if learned:
        held = {weight.name: names[weight.buffer] for weight in before}
        exact.check(out / MODEL, learned, held)
